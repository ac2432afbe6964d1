"""The audit file: append-only, private, locked, and bounded by rotation.

When the file has reached its size it becomes FILE.1, FILE.1 becomes FILE.2 and so on; the oldest is
deleted, which a record says. A file that another program, such as logrotate, has renamed is
replaced by a new one before the next record. The chain goes on over files and restarts.
"""

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

from ruvd.core.private_files import open_private
from ruvd.telemetry.audit.chain import Fields, Hasher, Position
from ruvd.telemetry.audit.outputs import Prepared
from ruvd.telemetry.audit.tail import read_tail

_log = logging.getLogger("ruvd.audit")
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class AuditFileInUse(OSError):
    """Another process writes the audit file."""


class FileOutput:
    """Appends to a file. With `max_bytes` 0 it never rotates, so that another program may."""

    def __init__(
        self,
        path: Path,
        hasher: Hasher,
        *,
        max_bytes: int = 0,
        max_files: int = 1,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._path = path
        self._hasher = hasher
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._write = write
        self._descriptor: int | None = None
        self._cannot_rotate = False

    def open(self) -> tuple[Position, bytes, bool]:
        """Returns where the chain in the file, or in the one before it, ends.

        A file whose end is not the end of a chain is kept under another name, and a new chain
        begins.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._reopen()
        for path in (self._path, self._rotated(1)):
            if not path.exists() or not path.stat().st_size:
                continue
            tail = read_tail(path, self._hasher)
            if tail.position is not None:
                return tail.position, tail.junk, tail.ends_line or path != self._path
            _log.error(
                "the audit log begins a new chain, because it cannot continue this file",
                extra={"path": str(path), "reason": tail.reason},
            )
            if path == self._path:
                self._rotate()
            break
        return Position(), b"", True

    def prepare(self) -> Prepared:
        """Rotates a file that is large enough, and opens a new one if the file was renamed."""
        if self._descriptor is not None:
            status = os.fstat(self._descriptor)
            try:
                named = self._path.stat()
                is_named = (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)
            except FileNotFoundError:
                is_named = False
            is_full = bool(self._max_bytes) and status.st_size >= self._max_bytes
            if is_named and not is_full:
                return Prepared()
            if is_named:
                return self._try_rotation()
        self._reopen()
        return Prepared(is_new=True)

    def write(self, data: bytes) -> int:
        """Appends lines."""
        if self._descriptor is None:
            self._reopen()
        assert self._descriptor is not None  # noqa: S101  # for the types
        return self._write(self._descriptor, data)

    def close(self) -> None:
        """Writes the file to the disk and closes it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _reopen(self) -> None:
        descriptor = open_private(self._path, _FLAGS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AuditFileInUse(f"{self._path} is in use by another process") from None
        old, self._descriptor = self._descriptor, descriptor
        if old is not None:
            os.close(old)

    def _try_rotation(self) -> Prepared:
        try:
            events = self._rotate()
        except OSError as error:
            if not self._cannot_rotate:
                _log.error("the audit file cannot be rotated", extra={"reason": str(error)})
            self._cannot_rotate = True
            return Prepared()
        self._cannot_rotate = False
        return Prepared(is_new=True, events=events)

    def _rotate(self) -> tuple[Fields, ...]:
        """Renames the files; returns a record of what is deleted by that."""
        events: list[Fields] = []
        oldest = self._rotated(self._max_files - 1)
        if oldest.exists():
            position = read_tail(oldest, self._hasher).position
            through = position.sequence if position else 0
            events.append({"event": "file_deleted", "through": through})
        for number in range(self._max_files - 1, 0, -1):
            source = self._rotated(number - 1)
            if source.exists():
                source.replace(self._rotated(number))
        self._reopen()
        return tuple(events)

    def _rotated(self, number: int) -> Path:
        """Returns the path of the file that was rotated so many times."""
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
