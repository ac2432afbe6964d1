"""CRC-32 checksums of the rows that hold content, so that damaged content is never served.

A disk, a memory module or a program may change bytes in a way that leaves the database readable. A
row's checksum is written by the statement that writes the row, and compared whenever it is read. It
covers the row's place too, so that a row of another session or turn is not taken for this one's. A
row without a checksum is from a ruvd that wrote none; it is not checked, since a checksum that is
made later would confirm whatever is there. The times of a session's use are not covered: they are
updated for many sessions at once.
"""

from typing import Any, TypeAlias
from zlib import crc32

Row: TypeAlias = tuple[Any, ...]


def of_message(
    place: tuple[int, int, int], role: str, content: str | bytes, extra: str | None
) -> int:
    """Returns the checksum of a row of `messages` at a (branch, exchange, position)."""
    if isinstance(content, bytes):
        return crc32(content, crc32(f"{place} {role} {extra}\0".encode()))
    return crc32(f"{place} {role} {extra}\0{content}".encode())


def of_session(columns: Row, compaction: str | bytes | None) -> int:
    """Returns the checksum of the columns of `sessions` after `pk` and before the checksum, and of
    the column `compaction`."""
    content = columns[-1] if isinstance(columns[-1], bytes) else columns[-1].encode()
    return crc32(content, crc32(session_head(columns, compaction)))


def session_head(columns: Row, compaction: str | bytes | None) -> bytes:
    """Returns what the checksum covers besides the last column, the system prompt."""
    # REAL columns return floats for the integers that were stored.
    created, idle_timeout = columns[1] + 0.0, columns[3] + 0.0
    head = f"{columns[0]} {created} {idle_timeout} {columns[5:-1]}".encode()
    if compaction is None:
        return head  # as in a row of a ruvd that had no compaction
    return b"%s %s" % (head, compaction if isinstance(compaction, bytes) else compaction.encode())


def of_record(columns: Row) -> int:
    """Returns the checksum of the columns of `receipts` after `pk` and before the checksum."""
    return crc32(repr(columns).encode())


def is_right(stored: int | None, computed: int) -> bool:
    """Tells whether a row has the right checksum, or none."""
    return stored is None or stored == computed


def lenient_text(data: bytes) -> str:
    """Decodes a TEXT value. Bytes that are not UTF-8 become surrogates, which cannot be encoded.

    A connection's `text_factory`: SQLite's own would raise an error that names the content, and
    that looks like one of the database.
    """
    return data.decode(errors="surrogateescape")
