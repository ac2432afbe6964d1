"""The store in PostgreSQL: sessions that outlive the machine, and that daemons may share.

Each replica has a lease. A turn takes its session (see `writes`), and its commit gives it back.
While a turn runs, other replicas begin none in the session. Once the replica's lease is over, they
take the session, and what the former owner still wants to write is refused.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TypeVar

import psycopg

from ruvd.core.errors import (
    OwnershipLost,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
)
from ruvd.core.ports.background import StartTask, start_unsupervised
from ruvd.core.ports.clock import StoredClock
from ruvd.core.ports.events import (
    Observer,
    ReplicaJoined,
    SessionTakenOver,
    StoreBatch,
    WriteFenced,
)
from ruvd.core.ports.replicas import SessionChanged, SessionElsewhere
from ruvd.core.ports.store import (
    DEFAULT_TOMBSTONES,
    Commit,
    Gone,
    RemovedSession,
    StoreUsage,
    TombstoneLimits,
    TurnSnapshot,
)
from ruvd.core.tenants import own
from ruvd.stores.postgres import ownership, places, reads, removals, schema, writes
from ruvd.stores.postgres.connections import Connections
from ruvd.stores.postgres.lease import Lease
from ruvd.stores.postgres.outcomes import write_until_known
from ruvd.stores.postgres.reading import ReadingStore
from ruvd.stores.postgres.reads import Connection
from ruvd.stores.postgres.replicas import PostgresReplicas, owner
from ruvd.stores.postgres.replication import confirm

_T = TypeVar("_T")

_DEFAULT_TIMEOUT_SECONDS = 10.0
_DEFAULT_LEASE_SECONDS = 10.0
_DEFAULT_CONNECTIONS = 8
# A sweep purges messages of deleted sessions for so long.
_PURGE_SECONDS = 1.0


class PostgresStore(ReadingStore):
    """The `Store` in a PostgreSQL database.

    A commit is as durable as the server's `synchronous_commit` makes it. The clock follows the
    database's, so that all replicas have the same time.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        clock: StoredClock,
        observer: Observer,
        password: Callable[[], str] = lambda: "",
        connections: int = _DEFAULT_CONNECTIONS,
        timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
        lease_seconds: float = _DEFAULT_LEASE_SECONDS,
        prepare: bool = True,
        start_task: StartTask = start_unsupervised,
        tombstones: TombstoneLimits = DEFAULT_TOMBSTONES,
    ) -> None:
        self._tombstones = tombstones
        self._clock = clock
        self._observer = observer
        self._timeout_seconds = timeout_seconds
        self._start_task = start_task
        self._connections = Connections(
            conninfo,
            password=password,
            size=connections,
            timeout_seconds=timeout_seconds,
            prepare=prepare,
            observer=observer,
        )
        self._lease = Lease(self._connections, lease_seconds, observer, clock.now)
        self.replicas = PostgresReplicas(self._lease, self._run, self._read)
        self._keeper: asyncio.Task[None] | None = None
        self._ready = False
        self._starting = asyncio.Lock()
        # The number of sessions at the last sweep, with what this replica did since.
        self._count = 0

    async def open(self) -> None:
        """Connects, brings the schema up to date, and joins the replicas.

        After StoreUnavailable each call tries again.
        """
        await self._connections.open()
        await self._start()

    async def close(self) -> None:
        """See `Store.close`. Gives the sessions of this replica back."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._ready:
            self._ready = False
            with suppress(StoreUnavailable):  # observed
                await self._lease.leave()
        await self._connections.close()

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`. Takes the session, which `commit` and `touch` give back."""
        me = self._lease.replica

        async def begin(db: Connection) -> TurnSnapshot:
            self._lease.check()
            await self.replicas.check_warm(db, session_id)
            begun = await writes.begin(db, me, session_id, request_id, now)
            if begun.elsewhere:
                known = begun.owner or await owner(db, me, session_id)
                raise SessionElsewhere(session_id, known)
            if begun.session is None:
                return await places.snapshot_of_none(
                    db,
                    self._tombstones,
                    session_id,
                    now,
                    self._count,
                    has_expired=begun.has_expired,
                )
            if begun.record is not None:
                await confirm(db)
                return TurnSnapshot(begun.session, begun.record)
            self._lease.taken_again(session_id)
            if begun.former_owner:
                self._observer(SessionTakenOver(session_id, begun.former_owner))
            return TurnSnapshot(begun.session, exchanges=begun.exchanges)

        try:
            return await self._read(begin)
        except SessionElsewhere:
            raise
        except BaseException:
            # It is not known whether the session was taken.
            self._lease.release_later(session_id)
            raise

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """See `Store.commit`."""
        session_id = commit.session.id
        if commit.create:
            return await self._create(commit)
        me, keeper = self._lease.replica, self.replicas.keeper(session_id)
        try:
            changed, was_lost = await write_until_known(
                self._run,
                session_id,
                lambda db, write: writes.commit(db, me, commit, write, keeper),
                self._timeout_seconds,
                self._observer,
            )
            if changed is None and not was_lost:
                await self._refuse(commit)
        except StoreUnavailable:
            self._lease.release_later(session_id)
            raise
        self._observer(StoreBatch(1))
        return ()

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """See `Store.fork`."""
        return await self._create(commit, parent_id)

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`. Gives the session back if this replica has it."""
        me, keeper = self._lease.replica, self.replicas.keeper(session_id)
        try:
            return await self._run(lambda db: ownership.touch(db, me, session_id, now, keeper))
        except BaseException:
            self._lease.release_later(session_id)
            raise

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        """See `Store.end`. A turn of another replica in the session cannot be committed then."""
        me = self._lease.replica
        existed = await self._run(
            lambda db: places.end(db, me, self._tombstones, session_id, gone, now)
        )
        self._count -= existed
        return existed

    async def gone(self, session_id: str, now: float) -> Gone | None:
        """See `Store.gone`."""
        return await self._read(lambda db: places.gone(db, self._tombstones, session_id, now))

    async def usage(self, tenant: str) -> StoreUsage:
        """See `Store.usage`. O(n) in the tenant's sessions."""
        return await self._read(lambda db: places.usage(db, tenant, self._count))

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`. Also purges what deleted sessions have left."""
        expired = await self._run(lambda db: places.expire(db, self._tombstones, now, protected))
        if not expired:
            end = time.monotonic() + _PURGE_SECONDS
            while time.monotonic() < end and await self._run(removals.purge):
                pass
            await self._lease.forget_others()
        await self._recount()
        return expired

    async def _create(self, commit: Commit, parent_id: str = "") -> Sequence[RemovedSession]:
        me, session_id = self._lease.replica, commit.session.id
        refusal: Exception | None = None
        keeper = self.replicas.keeper(session_id)

        async def create(db: Connection, write: str) -> list[RemovedSession] | None:
            nonlocal refusal
            try:
                return await writes.create(
                    db, me, self._tombstones, commit, write, self._count, parent_id, keeper
                )
            except (psycopg.errors.UniqueViolation, SessionExists, SessionChanged) as error:
                refusal = error
                return None

        removed, was_lost = await write_until_known(
            self._run, session_id, create, self._timeout_seconds, self._observer
        )
        if was_lost:
            await self._recount()
        elif removed is None:
            if isinstance(refusal, SessionChanged):
                raise refusal
            if writes.is_turn(commit):
                self._observer(WriteFenced(session_id, "created"))
                raise OwnershipLost(
                    f"another replica has created the session {own(session_id)!r} meanwhile;"
                    " nothing was stored: repeat the call with the same request id"
                )
            raise SessionExists(f"there is a session {own(session_id)!r} already")
        else:
            self._count += 1 - len(removed)
        self._observer(StoreBatch(1))
        return removed or []

    async def _refuse(self, commit: Commit) -> None:
        """Raises the reason why a session could not be written."""
        me, session_id = self._lease.replica, commit.session.id
        in_use = await self._read(lambda db: ownership.is_in_use_elsewhere(db, me, session_id))
        if in_use is None:
            raise SessionNotFound(f"there is no session {own(session_id)!r}")
        if writes.is_turn(commit):
            self._observer(WriteFenced(session_id, "taken"))
            raise OwnershipLost(
                f"another replica has taken the session {own(session_id)!r} since the turn began;"
                " nothing was stored: repeat the call with the same request id"
            )
        self._observer(WriteFenced(session_id, "in_use" if in_use else "changed"))
        if not in_use:
            raise SessionChanged(session_id)
        raise SessionElsewhere(session_id, await self.replicas.owner(session_id))

    async def _recount(self) -> None:
        self._count = await self._read(reads.session_count)

    async def _run(self, operation: Callable[[Connection], Awaitable[_T]]) -> _T:
        if not self._ready:
            await self._start()
        return await self._connections.run(operation)

    async def _read(self, operation: Callable[[Connection], Awaitable[_T]]) -> _T:
        if not self._ready:
            await self._start()
        return await self._connections.run(operation, repeats=True)

    async def _start(self) -> None:
        """Does what must be done once after the database has answered for the first time."""
        async with self._starting:
            if self._ready:
                return
            await self._connections.run(schema.migrate)
            await self._lease.renew()
            self._observer(ReplicaJoined(self._lease.replica))
            self._clock.follow(self._lease.database_now)
            self._count = await self._connections.run(reads.session_count)
            if self._keeper is None:
                self._keeper = self._start_task("lease of the replica", self._lease.keep)
            self._ready = True
