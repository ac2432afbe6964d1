"""The operator's keys, and the file that they are in.

A line of the file is `ID:KEY`, and words after a space are ignored. ID is a name of the operator's,
and KEY is 32 bytes in base64 or as 64 hexadecimal digits. A line that begins with `#` is a comment.
The first key is the current one, which seals; the others open what was sealed before. They seal
only data keys, so a new current key needs only those to be sealed anew.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ruvd.core.private_files import open_private
from ruvd.core.values import value
from ruvd.sealing.aead import KEY_BYTES, AeadKey

SETTING = "encryption_key_file"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")
_MAX_BYTES = 1 << 20


class KeyMissing(LookupError):
    """Something is sealed with a key that is not in the key file."""


@value(frozen=True, slots=True)
class WrappedKey:
    """A data key that an operator's key has sealed."""

    key_id: str
    sealed: bytes


class KeyRing:
    """The keys of a key file by their ids, the current one first."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self.material = dict(keys)
        self._keys = {key_id: AeadKey(secret) for key_id, secret in keys.items()}
        self.current_id = next(iter(keys))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, the current one first."""
        return tuple(self._keys)

    def with_others(self, other: "KeyRing") -> "KeyRing":
        """Returns these keys and after them those of the other ring that are not among them."""
        return KeyRing({**self.material, **other.material, **self.material})

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Seals a data key with the current key."""
        return self.wrap_with(self.current_id, secret, context)

    def wrap_with(self, key_id: str, secret: bytes, context: bytes) -> WrappedKey:
        """Seals a data key with the key of this id."""
        return WrappedKey(key_id, self._keys[key_id].seal(secret, _context(key_id, context)))

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Returns a data key. Raises KeyMissing, and SealBroken for another key of the same id."""
        key = self._keys.get(wrapped.key_id)
        if key is None:
            raise KeyMissing(wrapped.key_id)
        return key.open(wrapped.sealed, _context(wrapped.key_id, context))


class OperatorKeys:
    """The keys in use. Any thread may read `ring`, which is replaced when the file changes.

    A key that was taken out of the file stays in use until a restart, so that nothing that is
    still sealed with it becomes unreadable while the daemon runs.
    """

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring

    def replace(self, ring: KeyRing) -> None:
        """Takes the keys of a changed file."""
        self.ring = ring.with_others(self.ring)


def parse_keys(content: bytes) -> KeyRing:
    """Returns the keys in the content of a file. Raises ValueError, which names no key."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key_id, _, text = words[0].partition(":")
        if not _ID.fullmatch(key_id):
            raise ValueError(
                f"{SETTING}: line {number}: is not ID:KEY, with an id of letters, digits, and ._-"
            )
        secret = _decode(text)
        if secret is None:
            raise ValueError(
                f"{SETTING}: line {number}: the key {key_id} is not {KEY_BYTES} bytes in base64 or"
                " hexadecimal digits"
            )
        if key_id in keys or secret in keys.values():
            raise ValueError(f"{SETTING}: line {number}: the key {key_id} is on another line, too")
        keys[key_id] = secret
    if not keys:
        raise ValueError(f"{SETTING}: has no key: make one with `ruvd key create --file FILE`")
    return KeyRing(keys)


def add_key(path: Path, key_id: str = "") -> str:
    """Makes a new key the first one of a file, which gets mode 0600, and returns the key's id.

    The file is replaced as a whole. Raises ValueError for a wrong file or id, and OSError.
    """
    today = datetime.now(UTC).date()
    key_id = key_id or f"{today}-{secrets.token_hex(4)}"
    rest = b""
    if os.path.lexists(path):
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            rest = file.read(_MAX_BYTES)
    secret = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    content = f"{key_id}:{secret} created={today}\n".encode() + rest
    parse_keys(content)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(open_private(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return key_id


def _decode(text: str) -> bytes | None:
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    try:
        secret = base64.b64decode(text.translate({45: 43, 95: 47}), validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) == KEY_BYTES else None


def _context(key_id: str, context: bytes) -> bytes:
    return b"ruvd data key\0" + key_id.encode() + b"\0" + context
