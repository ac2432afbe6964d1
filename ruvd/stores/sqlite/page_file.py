"""The overwriting of what SQLite leaves in the unused space of its pages.

`PRAGMA secure_delete` overwrites deleted rows and pages with zeros. But when SQLite moves rows
between pages to balance a tree, copies of them stay behind, between a page's cell pointers and its
cells. Nothing overwrites the copy of a row that is deleted later. `VACUUM` would remove the copies,
but stops all writes for 10 ms for each MiB. So zeros are written into that space, which SQLite
never reads, in the database file itself.

This is safe only while the caller holds the write lock and the write-ahead log is empty: then no
program can commit, and none has a page to copy from the log into the file. A write that a crash
tears changes nothing that SQLite reads. https://www.sqlite.org/fileformat2.html describes pages.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_PAGE_BYTES_AT, _RESERVED_BYTES_AT, _LARGEST_ROOT_AT = 16, 20, 52
# The page with this byte is never used, except for locks.
_LOCK_BYTE = 1 << 30
# An entry of a page of the pointer map: the type of another page, and the number of its parent.
_MAP_ENTRY_BYTES = 5
_TREE_PAGE_TYPES = (1, 5)
# The length of the header of a page of a tree, by its first byte.
_TREE_HEADER_BYTES = {2: 12, 5: 12, 10: 8, 13: 8}
_CELL_COUNT_AND_START = struct.Struct(">HH")
_CELL_COUNT_AT = 3
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


class PageFile:
    """The pages of the database file that is open as `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        header = os.pread(descriptor, _HEADER_BYTES, 0).ljust(_HEADER_BYTES, b"\0")
        self.page_bytes = int.from_bytes(header[_PAGE_BYTES_AT : _PAGE_BYTES_AT + 2])
        # Without a pointer map a page's type is unknown. Reserved bytes belong to an extension
        # that may compute checksums of whole pages.
        self.can_be_scrubbed = (
            header.startswith(_MAGIC)
            and self.page_bytes >= _HEADER_BYTES  # 1 stands for 64 KiB, which ruvd never chooses
            and header[_RESERVED_BYTES_AT] == 0
            and header[_LARGEST_ROOT_AT : _LARGEST_ROOT_AT + 4] != bytes(4)
        )

    def page_count(self) -> int:
        """Returns the number of pages in the file."""
        return os.fstat(self._descriptor).st_size // self.page_bytes

    def scrub(self, numbers: Iterable[int]) -> int:
        """Overwrites the unused space of these pages; returns how many were not clean.

        Ignores pages of other kinds than those of trees, as SQLite clears them by itself.
        """
        changed = 0
        map_number, types = 0, b""
        for number in sorted(number for number in numbers if number > 2):
            if self._map_of(number) != map_number:
                map_number = self._map_of(number)
                types = self._read(map_number)
            if not self._is_tree_page(number, map_number, types):
                continue
            page = self._read(number)
            start, end = _unused(page)
            if page.count(0, start, end) != end - start:
                offset = (number - 1) * self.page_bytes + start
                os.pwrite(self._descriptor, bytes(end - start), offset)
                changed += 1
        return changed

    def _read(self, number: int) -> bytes:
        return os.pread(self._descriptor, self.page_bytes, (number - 1) * self.page_bytes)

    def _map_of(self, number: int) -> int:
        """Returns the page of the pointer map that has the page's entry, or is the page itself."""
        interval = self.page_bytes // _MAP_ENTRY_BYTES + 1
        map_number = (number - 2) // interval * interval + 2
        return map_number + (map_number == self._lock_page)

    @property
    def _lock_page(self) -> int:
        return _LOCK_BYTE // self.page_bytes + 1

    def _is_tree_page(self, number: int, map_number: int, types: bytes) -> bool:
        if number <= map_number or number == self._lock_page:
            return False
        at = (number - map_number - 1) * _MAP_ENTRY_BYTES
        return at < len(types) and types[at] in _TREE_PAGE_TYPES


def logged_pages(log: Path, page_bytes: int, max_frames: int) -> set[int] | None:
    """Returns the numbers of all pages in a write-ahead log, or None for more than `max_frames`."""
    numbers = set()
    try:
        with log.open("rb", buffering=0) as file:
            frame_bytes = _FRAME_HEADER_BYTES + page_bytes
            size = os.fstat(file.fileno()).st_size
            if size > _LOG_HEADER_BYTES + max_frames * frame_bytes:
                return None
            for offset in range(_LOG_HEADER_BYTES, size, frame_bytes):
                numbers.add(int.from_bytes(os.pread(file.fileno(), 4, offset)))
    except FileNotFoundError:
        pass
    return numbers


def _unused(page: bytes) -> tuple[int, int]:
    """Returns where the space between the cell pointers and the cells of a page of a tree starts
    and ends. It is empty for a page that is not as it should be."""
    header_bytes = _TREE_HEADER_BYTES.get(page[0] if page else 0)
    if header_bytes is None:
        return 0, 0
    cells, end = _CELL_COUNT_AND_START.unpack_from(page, _CELL_COUNT_AT)
    start = header_bytes + 2 * cells
    return (start, end) if start <= end <= len(page) else (0, 0)
