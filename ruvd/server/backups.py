"""Backups of the SQLite store into one directory, for administrators.

A caller names a file and never a path, so that an administrator far away cannot write anywhere else
on this machine.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from ruvd.core.errors import BackupExists, BackupFailed, Overloaded
from ruvd.rpc.admin.ports import BackupFile, CopiedPages

_PROGRESS_SECONDS = 0.25

_log = logging.getLogger("ruvd.daemon")


class BackUp(Protocol):
    """The function that copies a store; see `ruvd.stores.sqlite.backup.back_up`."""

    def __call__(self, source: Path, target: Path, *, progress: Callable[[int, int], None]) -> int:
        """Copies the store in `source` to `target`, and returns the size in bytes. Blocks."""


class Backups:
    """Backups of the store in the file `store` into `directory`, one at a time.

    `back_up` is None for a store that has no file.
    """

    def __init__(
        self,
        back_up: BackUp | None = None,
        store: Path = Path(),
        directory: Path = Path(),
    ) -> None:
        self._back_up = back_up
        self._store = store
        self._directory = directory
        self._running = False

    async def make(self, name: str) -> AsyncGenerator[CopiedPages | BackupFile, None]:
        """See `ruvd.rpc.admin.ports.Backups`."""
        store, back_up = self._store, self._back_up
        if back_up is None:
            raise BackupFailed("only an SQLite store can be backed up by the daemon")
        if self._running:
            raise Overloaded("another backup is being made; try again when it has ended")
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target = self._directory.absolute() / (name or f"{store.stem}-{time}{store.suffix}")
        copy = _Copy(back_up, store, target)
        self._running = True
        copying = asyncio.create_task(asyncio.to_thread(copy.run), name="backup")
        copying.add_done_callback(partial(self._ended, target))
        try:
            sent = copy.progress
            while not copying.done():
                await asyncio.wait([copying], timeout=_PROGRESS_SECONDS)
                if copy.progress != sent:
                    sent = copy.progress
                    yield CopiedPages(*sent)
            yield BackupFile(str(target), copying.result())
        finally:
            copy.stop()

    def _ended(self, target: Path, copying: "asyncio.Task[int]") -> None:
        self._running = False
        error = None if copying.cancelled() else copying.exception()
        path = {"path": str(target)}
        if copying.cancelled() or isinstance(error, _Stopped):
            _log.info("backup given up", extra=path)
        elif error is None:
            _log.info("backup made", extra={**path, "bytes": copying.result()})
        else:
            _log.warning("backup failed", extra={**path, "reason": str(error)})


class _Stopped(Exception):
    """The caller has gone."""


class _Copy:
    """One copy of the store, made in a thread. `progress` are the copied and all pages."""

    def __init__(self, back_up: BackUp, store: Path, target: Path) -> None:
        self._back_up = back_up
        self._store = store
        self._target = target
        self._stop = threading.Event()
        self.progress = (0, 0)

    def stop(self) -> None:
        """Ends the copying soon."""
        self._stop.set()

    def run(self) -> int:
        """Copies, and returns the size in bytes. Blocks.

        Raises BackupExists, BackupFailed and StoreUnavailable.
        """
        target = self._target
        try:
            self._make_directory()
            return self._back_up(self._store, target, progress=self._on_progress)
        except FileExistsError as error:
            raise BackupExists(str(error)) from None
        except OSError as error:
            raise BackupFailed(f"cannot write {target}: {error.strerror or error}") from error

    def _make_directory(self) -> None:
        directory = self._target.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise BackupFailed(f"{directory} is not a directory") from None

    def _on_progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self.progress = (done, total)
