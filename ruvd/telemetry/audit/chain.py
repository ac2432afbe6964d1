"""The hash chain of audit records: each has the hash of the one before it.

A record is one line of canonical JSON: keys sorted, no spaces, ASCII only. `seq` counts from 1,
`prev` is the `hash` of the record before (START for the first one), and `hash` covers everything
else in the record. With a key it is an HMAC, so that nobody without the key can make a chain; a
plain SHA-256 can be computed again by whoever may write the file. Hence each record with a valid
hash vouches for all records before it.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

Fields: TypeAlias = Mapping[str, str | int]

START = "start"
TAIL_DISCARDED = "tail_discarded"
_MIN_KEY_BYTES = 16
_MAX_KEY_BYTES = 4096
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Position:
    """The last record of a chain: its number and its hash."""

    sequence: int = 0
    last_hash: str = START


class Hasher:
    """Computes the hashes of records, as HMACs if there is a key."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    def seal(self, fields: Fields, after: Position) -> tuple[bytes, Position]:
        """Returns the line of the record that follows `after`, and its position."""
        record = {**fields, "seq": after.sequence + 1, "prev": after.last_hash}
        digest = self._hash(record)
        line = _canonical({**record, "hash": digest}) + b"\n"
        return line, replace(after, sequence=after.sequence + 1, last_hash=digest)

    def is_valid(self, record: Mapping[str, Any]) -> bool:
        """Tells whether the hash of a parsed record is that of its content."""
        content = {name: value for name, value in record.items() if name != "hash"}
        return hmac.compare_digest(self._hash(content), record["hash"])

    def _hash(self, content: Mapping[str, Any]) -> str:
        data = _canonical(content)
        if self._key:
            return f"hmac-sha256:{hmac.digest(self._key, data, 'sha256').hex()}"
        return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a line without its line break, None if it is not a canonical one."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or _canonical(record) != line:
            return None
    except (ValueError, RecursionError):
        return None
    previous, digest = record.get("prev"), record.get("hash")
    if type(record.get("seq")) is not int or not isinstance(previous, str):
        return None
    return record if isinstance(digest, str) and digest.isascii() else None


def position_of(record: Mapping[str, Any]) -> Position:
    """Returns the position of a parsed record."""
    return Position(record["seq"], record["hash"])


def describe_discarded(junk: bytes) -> dict[str, str | int]:
    """Returns the fields of a record about an incomplete record before it, which stays in place."""
    digest = hashlib.sha256(junk).hexdigest()
    return {"event": TAIL_DISCARDED, "bytes": len(junk), "sha256": digest}


def declares(record: Mapping[str, Any], junk: Sequence[bytes]) -> bool:
    """Tells whether a record says that these lines before it are of an incomplete record."""
    described = describe_discarded(b"\n".join(junk))
    return all(record.get(name) == value for name, value in described.items())


def read_key(path: Path | None) -> bytes:
    """Returns the key in a file without the white space around it; no key without a file.

    Raises OSError, and ValueError if the key is too short or too long.
    """
    if path is None:
        return b""
    with path.open("rb") as file:
        key = file.read(_MAX_KEY_BYTES + 1).strip()
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ValueError(f"{path} must have {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes")
    return key


def _canonical(record: Mapping[str, Any]) -> bytes:
    return _encoder.encode(record).encode()
