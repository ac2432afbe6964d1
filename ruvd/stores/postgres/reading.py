"""The reads of the store in PostgreSQL, each of one operation on a connection."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports.store import HistoryPart, StoreCounts, TenantCounts
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores.postgres import reads
from ruvd.stores.postgres.reads import Connection
from ruvd.stores.postgres.replication import confirmed

_T = TypeVar("_T")


class ReadingStore(ABC):
    """The methods of a `Store` that change nothing."""

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        return await self._read(lambda db: reads.get(db, session_id))

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        return await self._read(lambda db: reads.exchanges(db, session_id, first))

    async def messages(
        self, session_id: str, first: int, max_messages: int, max_bytes: int
    ) -> HistoryPart | None:
        """See `Store.messages`."""
        return await self._read(
            lambda db: reads.messages(db, session_id, first, max_messages, max_bytes)
        )

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        return await self._read(lambda db: reads.size_at(db, session_id, exchange_count))

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
        return await self._read(
            lambda db: reads.page(db, after, limit, labels, now, active_or_in_turn, tenant)
        )

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """See `Store.idempotency_record`."""
        return await self._read(
            lambda db: confirmed(db, reads.idempotency_record(db, session_id, request_id))
        )

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return await self._read(lambda db: confirmed(db, reads.completion(db, completion_id)))

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return await self._read(lambda db: confirmed(db, reads.created_by(db, request_id)))

    async def turns(self, session_id: str, first: int, end: int) -> Sequence[StoredTurn]:
        """See `Store.turns`."""
        return await self._read(lambda db: reads.turns(db, session_id, first, end))

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """See `Store.counts`."""
        return await self._read(lambda db: reads.counts(db, now, active_or_in_turn, tenant))

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """See `Store.tenants`."""
        return await self._read(
            lambda db: reads.tenant_counts(db, now, after, limit, active_or_in_turn)
        )

    @abstractmethod
    async def _read(self, operation: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Runs an operation on a connection."""
