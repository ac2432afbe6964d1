"""The end of an audit file: its last record, and what a crash has left after it."""

from pathlib import Path
from typing import NamedTuple

from ruvd.telemetry.audit.chain import Hasher, Position, parse, position_of

# A record has less than a tenth of that.
_MAX_TAIL_BYTES = 1 << 20


class Tail(NamedTuple):
    """The end of a file. `position` is None if the chain cannot go on from it, for this `reason`.

    `junk` are the bytes of an incomplete record after the last one.
    """

    position: Position | None
    junk: bytes = b""
    ends_line: bool = True
    reason: str = ""


def read_tail(path: Path, hasher: Hasher) -> Tail:
    """Reads the end of an audit file. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - _MAX_TAIL_BYTES)
        file.seek(start)
        data = file.read()
    if not data:
        return Tail(Position())
    ends_line = data.endswith(b"\n")
    lines = data.removesuffix(b"\n").split(b"\n")
    junk: list[bytes] = []
    while lines:
        line = lines.pop()
        record = parse(line)
        if record is not None:
            if not hasher.is_valid(record):
                return Tail(None, reason="the hash of its last record is not the one of this key")
            return Tail(position_of(record), b"\n".join(junk), ends_line)
        if line.endswith(b"}"):  # no crash leaves that
            return Tail(None, reason="its last line is complete, and no record")
        junk.insert(0, line)
    if start:
        return Tail(None, reason="it has no record near its end")
    return Tail(Position(), b"\n".join(junk), ends_line)
