"""The lease of this replica: while it lasts, no other one takes the sessions that it has."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ids import unguessable
from ruvd.core.ports.events import LeaseRenewed, Observer
from ruvd.core.ports.tenant_usage import UsageExchange
from ruvd.stores.postgres import claims, usage
from ruvd.stores.postgres.connections import Connections
from ruvd.stores.postgres.ownership import give_back, touch_running
from ruvd.stores.postgres.reads import Connection, every
from ruvd.stores.postgres.rows import Row

# Renewals in a lease, so that one or two may fail.
_RENEWALS = 3
# The lease counts as over this share of it earlier here than in the database.
_MARGIN = 0.1
# Replicas whose lease was over for this long are forgotten.
_FORGET_SECONDS = 3600.0
# Writes this replica's row, and returns the time and the usage of tenants at the others that live.
_RENEW = """
WITH renewed AS (
    INSERT INTO replicas (id, address, until, tenant_usage)
    VALUES (%(me)s, %(address)s,
        clock_timestamp() + make_interval(secs => %(seconds)s), %(usage)s)
    ON CONFLICT (id) DO UPDATE SET until = excluded.until, address = excluded.address,
        tenant_usage = excluded.tenant_usage
)
SELECT extract(epoch FROM clock_timestamp())::double precision, r.id, r.tenant_usage
FROM (VALUES (1)) one LEFT JOIN replicas r
ON r.id <> %(me)s AND r.until > clock_timestamp()
"""


class Lease:
    """The lease of a replica, which `keep` renews.

    The database's clock decides when it is over. This process's own clock is asked before a turn
    begins: after a pause, the lease may be over without anyone having said so.
    """

    def __init__(
        self,
        connections: Connections,
        seconds: float,
        observer: Observer,
        now: Callable[[], float],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replica = unguessable()
        self.address = ""  # at which other replicas reach this one
        self.database_now = 0.0
        self.usage: UsageExchange | None = None
        self._connections = connections
        self._seconds = seconds
        self._observer = observer
        self._now = now
        self._monotonic = monotonic
        self._until = 0.0
        self._unreleased: set[str] = set()
        self._hurry = asyncio.Event()
        self._renewing = asyncio.Lock()

    @property
    def is_valid(self) -> bool:
        """Whether the lease lasts, by this process's own clock."""
        return self._monotonic() < self._until

    def check(self) -> None:
        """Raises StoreUnavailable if the lease is over."""
        if not self.is_valid:
            raise StoreUnavailable("the lease of this replica is over; it is being renewed")

    def release_later(self, session_id: str) -> None:
        """Gives a session back with the next renewal, as it may still be this replica's."""
        self._unreleased.add(session_id)

    def release_soon(self, session_id: str) -> None:
        """Gives a session back at once, with a renewal."""
        self._unreleased.add(session_id)
        self._hurry.set()

    def taken_again(self, session_id: str) -> None:
        """Says that a turn has the session, which is not to be given back now."""
        self._unreleased.discard(session_id)

    async def renew(self) -> None:
        """Joins the replicas or renews the lease.

        The sessions that this replica's turns have are used meanwhile, for all replicas. What
        tenants use is told to the others, and learned from them.
        """
        async with self._renewing:  # what is learned must not be older than what is known
            await self._renew()

    async def _renew(self) -> None:
        asked, lasts = self._monotonic(), self.is_valid
        unreleased = frozenset(self._unreleased)
        own = usage.encode(self.usage.usage()) if self.usage else ""

        async def renew(db: Connection) -> Sequence[Row]:
            values = {"me": self.replica, "address": self.address, "seconds": self._seconds}
            rows = await every(db, _RENEW, {**values, "usage": own})
            if unreleased:
                await give_back(db, self.replica, unreleased)
            await touch_running(db, self.replica, self._now())
            return rows

        try:
            rows = await self._connections.run(renew)
        except StoreUnavailable:
            self._observer(LeaseRenewed(failed=True))
            if self.usage and not self.is_valid:
                self.usage.forget_others()
            raise
        self._observer(LeaseRenewed(failed=False))
        self.database_now = rows[0][0]
        self._until = asked + self._seconds * (1 - _MARGIN)
        self._unreleased -= unreleased
        if self.usage:
            if not lasts:
                self.usage.forget_others()
            self.usage.learn({row[1]: usage.decode(row[2]) for row in rows if row[1] is not None})

    async def keep(self) -> None:
        """Renews the lease until it is cancelled. A renewal that fails is tried again."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._seconds / _RENEWALS)
            self._hurry.clear()
            try:
                await self.renew()
            except StoreUnavailable:
                continue  # observed; the next renewal comes soon

    async def leave(self) -> None:
        """Gives all sessions back and ends the lease."""
        self._until = 0.0

        async def leave(db: Connection) -> None:
            await db.execute("UPDATE sessions SET owner = NULL WHERE owner = %s", (self.replica,))
            await db.execute("DELETE FROM claims WHERE owner = %s", (self.replica,))
            await db.execute("DELETE FROM replicas WHERE id = %s", (self.replica,))

        await self._connections.run(leave)

    async def forget_others(self) -> None:
        """Deletes the rows of replicas that have been gone for an hour, and claims of gone ones."""

        async def forget(db: Connection) -> None:
            await db.execute(
                "DELETE FROM replicas WHERE until < clock_timestamp() - make_interval(secs => %s)",
                (_FORGET_SECONDS,),
            )
            await claims.forget(db)

        await self._connections.run(forget)
