"""The two files of `ruvd batch`: the input, and the outcomes that also serve as its state.

An item gets one line in the out file, appended in one write when it has ended; the next run skips
it. A torn last line is dropped; any other line that is not ruvd's is an error. To run failed items
again, their lines are removed first, in a new file that replaces the old one as a whole. An input
that cannot be read twice, such as stdin, is copied to disk, so that a duplicate is found before
anything runs.
"""

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from ruvd.cli.batch_lines import (
    ID_PREFIX,
    MAX_LINE_BYTES,
    Item,
    Written,
    read_item,
    read_written,
)
from ruvd.cli.terminal import STREAM
from ruvd.core.private_files import open_private

_LINE_PREFIX = f'{{"id": "{ID_PREFIX}'.encode()


class FilesRefused(Exception):
    """The command cannot work with these files; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of items, of those with a line in the out file, and of failed ones among these."""

    items: int
    done: int
    failed: int


class OutcomeFile:
    """The out file, locked for this process until it is closed."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file with mode 0600. Raises FilesRefused."""
        self.path = path
        try:
            self._descriptor = _locked(path)
        except OSError as error:
            raise FilesRefused(f"{path}: {error.strerror}") from error
        self._ids: dict[str, str] = {}
        self._failed: set[str] = set()
        try:
            self._load()
        except BaseException:
            os.close(self._descriptor)
            raise

    def has(self, item: Item) -> bool:
        """Tells whether the item is done. Raises FilesRefused if another with its key is."""
        if self._ids.get(item.key, item.id) != item.id:
            raise FilesRefused(
                f"{self.path} has an outcome of another request with custom_id {item.key!r} than "
                f"line {item.number}; choose another --out"
            )
        return item.key in self._ids

    def has_failed(self, item: Item) -> bool:
        """Tells whether the item has an outcome and failed."""
        return item.key in self._failed

    def append(self, line: str) -> None:
        """Appends a whole line, visible to readers at once."""
        _write(self._descriptor, f"{line}\n".encode())

    def remove_failed(self) -> None:
        """Removes the lines of failed items, so that they run again."""
        part = self.path.with_name(f"{self.path.name}.part")
        part.unlink(missing_ok=True)
        kept = _locked(part, os.O_EXCL)
        try:
            for number, line in enumerate(self._lines(), 1):
                if self._read(line, number).succeeded:
                    _write(kept, line)
            os.fsync(kept)
            part.replace(self.path)
        except BaseException:
            os.close(kept)
            part.unlink(missing_ok=True)
            raise
        os.close(self._descriptor)
        self._descriptor = kept
        for key in self._failed:
            del self._ids[key]
        self._failed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _load(self) -> None:
        """Reads the outcomes, and ends the file with a whole line, as its last write may be cut."""
        last = b"\n"
        for number, last in enumerate(self._lines(), 1):
            if last.endswith(b"\n") or read_written(last):
                self._remember(self._read(last, number), number)
        if last.endswith(b"\n"):
            return
        if read_written(last):  # complete, but for the line break, as some editors write
            _write(self._descriptor, b"\n")
        elif last.startswith(_LINE_PREFIX[: len(last)]):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(last))
        else:
            raise FilesRefused(f"{self.path}: the last line was not written by ruvd batch")

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def _read(self, line: bytes, number: int) -> Written:
        if (written := read_written(line)) is None:
            raise FilesRefused(f"{self.path}: line {number} was not written by ruvd batch")
        return written

    def _remember(self, written: Written, number: int) -> None:
        if written.key in self._ids:
            raise FilesRefused(f"{self.path}: line {number} repeats the custom_id {written.key!r}")
        self._ids[written.key] = written.id
        if not written.succeeded:
            self._failed.add(written.key)


def _locked(path: Path, flags: int = 0) -> int:
    """Opens the file to append and locks it; returns the descriptor."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | flags)
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # False if the file was replaced meanwhile.
        alone = os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        alone = False
    if not alone:
        raise FilesRefused(f"another ruvd batch is writing to {path}")


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def opened_input(path: Path, output: Path) -> Iterator[IO[bytes]]:
    """Opens the input so that it can be read more than once. Raises FilesRefused."""
    if path == STREAM:
        with _spooled(sys.stdin.buffer) as file:
            yield file
        return
    if output.exists() and path.samefile(output):
        raise FilesRefused(f"{path} cannot be both FILE and --out")
    try:
        file = path.open("rb")
    except OSError as error:
        raise FilesRefused(f"{path}: {error.strerror}") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            yield file
            return
        with _spooled(file) as copy:
            yield copy


@contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        yield copy


def items(file: IO[bytes]) -> Iterator[Item]:
    """Reads the items of the input from its start, without blank lines."""
    file.seek(0)
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        if stripped := line.strip():
            yield read_item(stripped, number)


def plan(file: IO[bytes], output: OutcomeFile) -> Plan:
    """Counts the items. Raises FilesRefused if two lines have the same custom_id."""
    lines: dict[str, int] = {}
    done = failed = 0
    for item in items(file):
        if (first := lines.setdefault(item.key, item.number)) != item.number:
            raise FilesRefused(
                f"lines {first} and {item.number} have the same custom_id, {item.custom_id!r}"
            )
        done += output.has(item)
        failed += output.has_failed(item)
    return Plan(len(lines), done, failed)
