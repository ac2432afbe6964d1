"""The store in one SQLite file: the default, which survives the daemon.

One thread commits the writes in groups. Another one reads through its own connection, so that a
long read never delays a commit. The store is up while the last transaction of both threads has
succeeded. While it is down, each call tries again. On a full disk, sessions can be read and deleted
until there is room again. If its files were lost (see `file_watch`), it is down until it is opened
anew.
"""

import asyncio
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ruvd.core.errors import DataCorrupted, StoreUnavailable
from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports.clock import StoredClock
from ruvd.core.ports.events import Observer, StoreBatch, StoredDataDamaged
from ruvd.core.ports.store import (
    DEFAULT_TOMBSTONES,
    Commit,
    Gone,
    HistoryPart,
    RemovedSession,
    StoreCounts,
    StoreLocked,
    StoreUsage,
    TenantCounts,
    TombstoneLimits,
    TurnSnapshot,
)
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores.sqlite import history, places, reads, removals, writes
from ruvd.stores.sqlite.availability import Availability
from ruvd.stores.sqlite.clock import store_reading, store_step
from ruvd.stores.sqlite.connections import Connections
from ruvd.stores.sqlite.database import DatabaseFile, Durability
from ruvd.stores.sqlite.sealing import RowSealing
from ruvd.stores.sqlite.session_cache import CACHE_BYTES, CACHED_SESSION_BYTES, SessionCache
from ruvd.stores.sqlite.tenant_totals import tenant_counts
from ruvd.stores.sqlite.tombstones import Tombstones
from ruvd.stores.sqlite.worker import SqliteWorker
from ruvd.stores.sqlite.workers import Workers


class SqliteStore:
    """The `Store` in a file.

    With `durability` "normal", commits survive the end of the process; with "full" also a power
    cut, for which each commit is flushed to the disk. The observer receives a StoreBatch for each
    transaction that wrote something, and a StoreStateChanged when the store goes up or down. The
    clock goes on from the reading in the file, which `close` and some `expire` bring up to date.
    `sealing` encrypts the content of rows, None leaves it plain.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = "normal",
        clock: StoredClock,
        observer: Observer,
        sealing: RowSealing | None = None,
        tombstones: TombstoneLimits = DEFAULT_TOMBSTONES,
    ) -> None:
        self._clock = clock
        self._file = DatabaseFile(path, durability, sealing)
        self._observer = observer
        self._connections = Connections(path, self._file, clock)
        self._availability = Availability(path, observer)
        self._workers = Workers(self._file, self._availability, self._report_damage)
        self._session_cache = SessionCache(CACHE_BYTES, CACHED_SESSION_BYTES)
        self._tombstones = Tombstones(tombstones)

    async def open(self) -> None:
        """Opens the file, creating it if it is missing.

        Raises StoreLocked if another process has it open, and StoreUnavailable if it cannot be
        used. After the latter, each call tries to open it again.
        """
        report_disk = self._availability.reporter(asyncio.get_running_loop(), "disk")
        housekeeping = self._connections.housekeeping(report_disk)
        writer = SqliteWorker(
            "store-writer",
            self._connections.writer(housekeeping),
            partial(self._availability.report, "writer"),
            committed=lambda writes: self._observer(StoreBatch(writes)),
            begin="BEGIN IMMEDIATE",
            idle=housekeeping.step,
            is_urgent=housekeeping.is_log_full,
            finish=housekeeping.finish,
            make_room=housekeeping.make_room,
            rolled_back=self._session_cache.clear,
            on_exit=self._file.release,
        )
        reader = SqliteWorker(
            "store-reader",
            self._connections.reader(),
            partial(self._availability.report, "reader"),
            begin="BEGIN",
            end="ROLLBACK",
        )
        try:
            await self._workers.open(writer, reader)
        except StoreLocked:
            await self.close()
            raise
        finally:
            self._connections.is_opening = False

    async def close(self) -> None:
        """See `Store.close`."""
        if self._availability.is_open:
            reading = self._clock.reading()
            with suppress(StoreUnavailable):  # observed
                await self._workers.write(lambda db: store_reading(db, reading))
        await self._workers.close()
        self._file.close_descriptors()

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        return await self._workers.read(lambda db: reads.get(db, session_id), session_id)

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        return await self._workers.read(
            lambda db: history.exchanges(db, session_id, first), session_id
        )

    async def messages(
        self, session_id: str, first: int, max_messages: int, max_bytes: int
    ) -> HistoryPart | None:
        """See `Store.messages`."""
        return await self._workers.read(
            lambda db: history.messages(db, session_id, first, max_messages, max_bytes), session_id
        )

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`."""
        kept = self._session_cache, self._tombstones
        return await self._workers.write(
            reads.of_session(
                session_id, lambda db: writes.begin_turn(db, *kept, session_id, request_id, now)
            ),
            lambda: writes.begin_turn_cached(self._session_cache, session_id, request_id, now),
        )

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """See `Store.commit`."""
        return await self._workers.write(
            lambda db: writes.commit(db, self._session_cache, self._tombstones, commit)
        )

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """See `Store.fork`."""
        return await self._workers.write(
            lambda db: writes.fork(db, self._session_cache, self._tombstones, commit, parent_id)
        )

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        return await self._workers.read(
            lambda db: history.size_at(db, session_id, exchange_count), session_id
        )

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`."""
        return await self._workers.write(
            lambda db: writes.touch(db, self._session_cache, session_id, now)
        )

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        """See `Store.end`."""
        kept = self._session_cache, self._tombstones
        return await self._workers.write(
            lambda db: removals.end(db, *kept, session_id, gone, now), deletes=True
        )

    async def gone(self, session_id: str, now: float) -> Gone | None:
        """See `Store.gone`."""
        return await self._workers.read(lambda db: self._tombstones.gone(db, session_id, now))

    async def usage(self, tenant: str) -> StoreUsage:
        """See `Store.usage`."""
        return await self._workers.read(lambda db: places.usage(db, tenant))

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`."""
        excluded = frozenset(protected)
        reading = self._clock.reading()

        def expire(db: sqlite3.Connection) -> Sequence[str]:
            store_step(db, reading)
            return removals.expire(db, self._session_cache, self._tombstones, now, excluded)

        return await self._workers.write(expire, deletes=True)

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
        tenant: str | None = None,
    ) -> tuple[Sequence[Session], int]:
        """See `Store.list`."""
        sessions, cursor, errors = await self._workers.read(
            lambda db: reads.page(db, after, limit, labels, now, active_or_in_turn, tenant)
        )
        for error in errors:
            self._report_damage(error)
        return sessions, cursor

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """See `Store.idempotency_record`."""
        return await self._workers.read(
            lambda db: reads.idempotency_record(db, session_id, request_id), session_id
        )

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return await self._workers.read(lambda db: reads.completion(db, completion_id))

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return await self._workers.read(lambda db: reads.created_by(db, request_id))

    async def turns(self, session_id: str, first: int, end: int) -> Sequence[StoredTurn]:
        """See `Store.turns`."""
        return await self._workers.read(
            lambda db: reads.turns(db, session_id, first, end), session_id
        )

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """See `Store.counts`."""
        return await self._workers.read(lambda db: reads.counts(db, now, active_or_in_turn, tenant))

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """See `Store.tenants`."""
        return await self._workers.read(
            lambda db: tenant_counts(db, now, after, limit, active_or_in_turn)
        )

    def _report_damage(self, error: DataCorrupted) -> None:
        self._observer(StoredDataDamaged(error.session_id, str(error)))
