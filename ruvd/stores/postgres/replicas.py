"""The replicas in PostgreSQL: a row for each with its lease and address, and what each owns."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ruvd.core.ports.replicas import Replica, SessionElsewhere
from ruvd.core.ports.tenant_usage import UsageExchange
from ruvd.stores.postgres import claims
from ruvd.stores.postgres.lease import Lease
from ruvd.stores.postgres.reads import Connection, every, one

_T = TypeVar("_T")

_OTHERS = "SELECT id, address FROM replicas WHERE id <> %(me)s AND until > clock_timestamp()"
_OWNER = (
    "SELECT r.id, r.address FROM replicas r WHERE r.id <> %(me)s AND r.until > clock_timestamp()"
    " AND r.id IN (SELECT owner FROM sessions WHERE id = %(id)s"
    " UNION ALL SELECT owner FROM claims WHERE session_id = %(id)s) LIMIT 1"
)
_LAST_OWNER = (
    "SELECT r.id, r.address FROM sessions s JOIN replicas r ON r.id = s.last_owner"
    " WHERE s.id = %(id)s AND s.owner IS NULL AND r.id <> %(me)s AND r.address <> ''"
    " AND r.until > clock_timestamp()"
)


class Run(Protocol):
    """Runs an operation on a connection."""

    async def __call__(self, operation: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Returns what the operation returns. Raises StoreUnavailable."""


class PostgresReplicas:
    """The `Replicas` of a PostgreSQL store."""

    def __init__(self, lease: Lease, run: Run, read: Run) -> None:
        self._lease = lease
        self._run = run
        self._read = read
        self._prefers_last_owner = False
        self._stays: set[str] = set()  # the sessions whose next turn begins here
        self._is_awaited: Callable[[str], bool] = lambda _: False
        self._kept: set[str] = set()  # the sessions that were not given back

    @property
    def me(self) -> str:
        """See `Replicas.me`."""
        return self._lease.replica

    async def announce(self, address: str) -> None:
        """See `Replicas.announce`."""
        self._lease.address = address
        await self._lease.renew()

        async def supersede(db: Connection) -> None:
            await db.execute(
                "DELETE FROM replicas WHERE address = %s AND id <> %s", (address, self.me)
            )

        await self._run(supersede)

    def prefer_last_owner(self) -> None:
        """See `Replicas.prefer_last_owner`."""
        self._prefers_last_owner = True

    def stay(self, session_id: str) -> None:
        """See `Replicas.stay`."""
        if self._prefers_last_owner:
            self._stays.add(session_id)

    async def check_warm(self, db: Connection, session_id: str) -> None:
        """Raises SessionElsewhere if another living replica has had the session last."""
        if not self._prefers_last_owner:
            return
        if session_id in self._stays:
            self._stays.discard(session_id)
        elif row := await one(db, _LAST_OWNER, {"me": self.me, "id": session_id}):
            raise SessionElsewhere(session_id, Replica(*row))

    def keep_while(self, is_awaited: Callable[[str], bool]) -> None:
        """See `Replicas.keep_while`."""
        self._is_awaited = is_awaited

    def keeper(self, session_id: str) -> str | None:
        """Returns the owner of a session after a write: this replica if it has the next turn."""
        if self._is_awaited(session_id):
            self._kept.add(session_id)
            return self.me
        self._kept.discard(session_id)
        return None

    def unused(self, session_id: str) -> None:
        """See `Replicas.unused`."""
        if session_id in self._kept:
            self._kept.discard(session_id)
            self._lease.release_soon(session_id)

    def share_usage(self, exchange: UsageExchange) -> None:
        """See `Replicas.share_usage`."""
        self._lease.usage = exchange

    async def others(self) -> Sequence[Replica]:
        """See `Replicas.others`."""
        rows = await self._read(lambda db: every(db, _OTHERS, {"me": self.me}))
        return [Replica(*row) for row in rows]

    async def owner(self, session_id: str) -> Replica | None:
        """See `Replicas.owner`."""
        return await self._read(lambda db: owner(db, self.me, session_id))

    async def claim(self, session_id: str) -> None:
        """See `Replicas.claim`."""

        async def claim(db: Connection) -> None:
            if not await claims.claim(db, self.me, session_id):
                raise SessionElsewhere(session_id, await owner(db, self.me, session_id))
            # Another replica may have created it just before.
            if await one(db, "SELECT 1 FROM sessions WHERE id = %s", (session_id,)):
                await claims.give_up(db, self.me, session_id)
                raise SessionElsewhere(session_id)

        await self._run(claim)

    async def give_up_claim(self, session_id: str) -> None:
        """See `Replicas.give_up_claim`."""
        await self._run(lambda db: claims.give_up(db, self.me, session_id))

    async def release(self, session_id: str, owner: str) -> None:
        """See `Replicas.release`."""

        async def release(db: Connection) -> None:
            await db.execute(
                "UPDATE sessions SET owner = NULL, epoch = epoch + 1 WHERE id = %s AND owner = %s",
                (session_id, owner),
            )
            await claims.give_up(db, owner, session_id)

        await self._run(release)


async def owner(db: Connection, me: str, session_id: str) -> Replica | None:
    """Returns the other living replica that has a turn in the session, or creates it."""
    row = await one(db, _OWNER, {"me": me, "id": session_id})
    return Replica(*row) if row else None
