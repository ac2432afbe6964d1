"""Bearer tokens from a file that has only their hashes.

A token is `ruvd_` and 256 random bits, so a plain SHA-256 of it cannot be reversed by guessing. A
line of the file is `sha256:HEX tenant=T role=R created=DATE note=TEXT`, of which the role, the date
and the note may be left out. A line that begins with `#` is a comment. A token is revoked by taking
its line out.
"""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ruvd.core.errors import Unauthenticated
from ruvd.rpc.identity.caller import Identity, Role
from ruvd.rpc.watched_files import Contents, WatchedFiles

PREFIX = "ruvd_"
_RANDOM_BYTES = 32
_SETTING = "tokens_file"
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_FIELDS = {"tenant", "role", "created", "note"}
_ROLES = ", ".join(role.value for role in Role)
# Hashes are grouped by so many bytes, which an attacker can know of a token of his own anyway.
_GROUP_BYTES = 4


class _Entry(NamedTuple):
    digest: bytes
    identity: Identity


class TokenFile:
    """The tokens of a file, which is read again when it changes.

    Raises FilesInvalid if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._groups: dict[bytes, list[_Entry]] = {}
        self.files = WatchedFiles({_SETTING: path}, self._load)

    def identify(self, token: str) -> Identity:
        """Returns the identity of a token. Raises Unauthenticated for an unknown one."""
        digest = _digest(token)
        for entry in self._groups.get(digest[:_GROUP_BYTES], ()):
            if hmac.compare_digest(entry.digest, digest):
                return entry.identity
        raise Unauthenticated("the bearer token is unknown or was revoked")

    def _load(self, contents: Contents) -> None:
        groups: dict[bytes, list[_Entry]] = {}
        seen: set[bytes] = set()
        text = contents[_SETTING].decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                entry = _entry(words)
            except ValueError as error:
                raise ValueError(f"{_SETTING}: line {number}: {error}") from None
            if entry.digest in seen:
                raise ValueError(f"{_SETTING}: line {number}: the token is on another line, too")
            seen.add(entry.digest)
            groups.setdefault(entry.digest[:_GROUP_BYTES], []).append(entry)
        self._groups = groups


def create(tenant: str, role: Role) -> tuple[str, str]:
    """Returns a new token, and the line of the file for it."""
    token = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    today = datetime.now(UTC).date()
    digest = _digest(token).hex()
    return token, f"sha256:{digest} tenant={tenant} role={role.value} created={today}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _entry(words: list[str]) -> _Entry:
    found = _HASH.fullmatch(words[0])
    if not found:
        raise ValueError("does not begin with sha256: and 64 hexadecimal digits")
    fields = dict(word.partition("=")[::2] for word in words[1:])
    if unknown := fields.keys() - _FIELDS:  # a role that is misspelt must not become another one
        raise ValueError(f"{min(unknown)!r} is not one of {', '.join(sorted(_FIELDS))}")
    tenant, role = fields.get("tenant", ""), fields.get("role", Role.USER.value)
    if not (tenant.isascii() and tenant.isprintable() and tenant):
        raise ValueError("has no tenant=NAME, or a name that is not printable ASCII text")
    if role not in {each.value for each in Role}:
        raise ValueError(f"the role {role!r} is not one of {_ROLES}")
    name = f"token {found[1][:8]}"
    return _Entry(bytes.fromhex(found[1]), Identity(tenant, Role(role), name, "token"))
