"""The two threads of the SQLite store: one commits the writes in groups, the other one reads."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from ruvd.core.errors import DataCorrupted, StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.stores.sqlite import reads
from ruvd.stores.sqlite.availability import Availability
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.worker import SqliteWorker

_T = TypeVar("_T")


class Workers:
    """Runs operations on the threads, and turns what hinders them into StoreUnavailable.

    `on_damage` is called with the error of each session whose stored data is damaged.
    """

    def __init__(
        self,
        file: DatabaseFile,
        availability: Availability,
        on_damage: Callable[[DataCorrupted], None],
    ) -> None:
        self._file = file
        self._availability = availability
        self._on_damage = on_damage
        self._writer: SqliteWorker | None = None
        self._reader: SqliteWorker | None = None

    async def open(self, writer: SqliteWorker, reader: SqliteWorker) -> None:
        """Starts both threads, and opens the file. Raises as `Store.open`."""
        self._writer, self._reader = writer, reader
        writer.start()
        reader.start()
        try:
            await writer.run(lambda _: None)  # it opens the file
        except StoreUnavailable:
            if self._file.is_read_only:
                with suppress(StoreUnavailable):  # observed
                    await reader.run(lambda _: None)
            raise

    async def close(self) -> None:
        """Ends both threads. Idempotent."""
        # The writer closes last: the last connection copies the log into the file.
        if self._reader is not None:
            await self._reader.close()
        if self._writer is not None:
            await self._writer.close()

    async def write(
        self,
        operation: Callable[[sqlite3.Connection], _T],
        cached: Callable[[], _T | None] = lambda: None,
        *,
        deletes: bool = False,
    ) -> _T:
        """Runs an operation in a transaction; on a full disk only one that `deletes`."""
        if self._availability.full_disk and not deletes:
            raise StoreUnavailable(self._availability.full_disk)
        return await self._run(self._writer, operation, cached, deletes=deletes)

    async def read(
        self, operation: Callable[[sqlite3.Connection], _T], session_id: str | None = None
    ) -> _T:
        """Runs an operation that only reads. Damaged pages are blamed on the session, if named."""
        if session_id is not None:
            operation = reads.of_session(session_id, operation)
        if not self._availability.is_open:
            try:
                await self._run(self._writer, lambda _: None)
            except StoreUnavailable:
                if not self._file.is_read_only:
                    raise
        return await self._run(self._reader, operation)

    async def _run(
        self,
        worker: SqliteWorker | None,
        operation: Callable[[sqlite3.Connection], _T],
        cached: Callable[[], _T | None] = lambda: None,
        *,
        deletes: bool = False,
    ) -> _T:
        if worker is None:
            raise StoreUnavailable("the store is not open")
        if self._file.watch.lost is not None:
            raise StoreUnavailable(self._file.watch.lost)
        try:
            return await worker.run(operation, cached, deletes=deletes)
        except StoreLocked as locked:
            raise StoreUnavailable(str(locked)) from locked
        except DataCorrupted as error:
            self._on_damage(error)
            raise
