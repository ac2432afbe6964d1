"""The two files of `ruvd batch`: what is to be done, and what is done.

An item has one line in the out file, appended in one write when its outcome is there, and that
line is how the next run knows. A last line that was torn is dropped; anything else that is not
ours is not touched. Failed items that are to run again lose their line first, in a file that
takes the old one's place whole. What cannot be read twice, as stdin, is copied to disk first, so
that a duplicate is found before anything runs.
"""

from __future__ import annotations

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

STREAM = Path("-")
_BLOCK_BYTES = 1 << 16
_BEGINNING = f'{{"id": "{ID_PREFIX}'.encode()


class FilesRefused(Exception):
    """The files are not what the command can work with; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many items there are, how many are in the out file already, and failed ones of those."""

    items: int
    done: int
    failed: int


class Output:
    """The out file, of this process alone until it is closed."""

    def __init__(self, path: Path) -> None:
        """Open or make it, mode 0600. Raises FilesRefused."""
        self.path = path
        try:
            self._descriptor = _locked(path)
        except OSError as error:
            raise FilesRefused(f"{path}: {error.strerror}") from error
        self._ids: dict[str, str] = {}
        self._failed: set[str] = set()
        try:
            self._repair()
            for number, line in enumerate(self._lines(), 1):
                self._remember(self._read(line, number), number)
        except BaseException:
            os.close(self._descriptor)
            raise

    def has(self, item: Item) -> bool:
        """Whether the item is done. Raises FilesRefused if another one is, of its custom_id."""
        if self._ids.get(item.key, item.id) != item.id:
            raise FilesRefused(
                f"{self.path} has the outcome of another request with custom_id {item.key!r} "
                f"than line {item.number} now asks for; choose another --out"
            )
        return item.key in self._ids

    def has_failed(self, item: Item) -> bool:
        """Whether the item is done and has failed."""
        return item.key in self._failed

    def append(self, line: str) -> None:
        """Write a line, whole, for others to see at once."""
        _write(self._descriptor, f"{line}\n".encode())

    def forget_failed(self) -> None:
        """Drop the lines of items that failed, so that they are to be done again."""
        part = self.path.with_name(f"{self.path.name}.part")
        part.unlink(missing_ok=True)
        kept = _locked(part)
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

    def _repair(self) -> None:
        """End the file with a whole line: the write of the last may have been cut."""
        end = size = os.fstat(self._descriptor).st_size
        with self.path.open("rb") as file:
            while end:  # back to where the last line begins
                begin = max(0, end - _BLOCK_BYTES)
                file.seek(begin)
                if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                    end = begin + found + 1
                    break
                end = begin
            file.seek(end)
            torn = file.read()
        if end == size:
            return
        if read_written(torn):  # whole, by an editor that leaves out the last line's end
            _write(self._descriptor, b"\n")
        elif torn.startswith(_BEGINNING[: len(torn)]):
            os.ftruncate(self._descriptor, end)
        else:
            raise FilesRefused(f"{self.path}: the last line is none of ruvd batch")

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def _read(self, line: bytes, number: int) -> Written:
        if (written := read_written(line)) is None:
            raise FilesRefused(f"{self.path}: line {number} is none of ruvd batch")
        return written

    def _remember(self, written: Written, number: int) -> None:
        if written.key in self._ids:
            raise FilesRefused(f"{self.path}: line {number} has {written.key!r} a second time")
        self._ids[written.key] = written.id
        if not written.succeeded:
            self._failed.add(written.key)


def _locked(path: Path) -> int:
    """The file, opened to append and locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _check_alone(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_alone(descriptor: int, path: Path) -> None:
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode):
        raise FilesRefused(f"{path} must be a file, as the next run reads it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = os.path.samestat(opened, path.stat())  # or it was replaced meanwhile
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
    """The input, to be read more than once. Raises FilesRefused."""
    if path == STREAM:
        with _spooled(sys.stdin.buffer) as file:
            yield file
        return
    if output.exists() and path.samefile(output):
        raise FilesRefused(f"{path} cannot be the --out as well")
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
    """The items of the input, from its beginning; lines of nothing but space are none."""
    file.seek(0)
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        if stripped := line.strip():
            yield read_item(stripped, number)


def plan(file: IO[bytes], output: Output) -> Plan:
    """What there is to do. Raises FilesRefused if two lines have the same custom_id."""
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
