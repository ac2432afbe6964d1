"""A wrapper that measures the store: commits have a duration, failures are counted.

The wrapper has every method of the port, so the core and the adapters know nothing of telemetry.
A commit that is slow or fails has a span, too. A span for each of the others, which take a fraction
of a millisecond, would cost 1 % of a stream's CPU and explain nothing.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Tracer

from ruvd.core.errors import RuvdError, StoreUnavailable
from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports.store import (
    Commit,
    Gone,
    HistoryPart,
    RemovedSession,
    Store,
    StoreCounts,
    StoreUsage,
    TenantCounts,
    TurnSnapshot,
)
from ruvd.core.ports.turns import StoredTurn
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.instruments import STORE_OPERATIONS, Instruments
from ruvd.telemetry.rpc_spans import end_span

_CANCELLED = "CANCELLED"
_OTHER = "_OTHER"
_MIN_SPAN_SECONDS = 0.005


class MeteredStore:
    """A store whose commits are measured and whose failures are counted.

    `kind` is the kind of store, such as `sqlite`. A successful commit below `min_span_seconds` has
    no span.
    """

    def __init__(
        self,
        store: Store,
        kind: str,
        tracer: Tracer,
        instruments: Instruments,
        deferred: Deferred,
        min_span_seconds: float = _MIN_SPAN_SECONDS,
    ) -> None:
        self._min_span_seconds = min_span_seconds
        self._store = store
        self._kind = kind
        self._tracer = tracer
        self._instruments = instruments
        self._deferred = deferred
        self._calls = {name: _ErrorCounter(instruments, name) for name in STORE_OPERATIONS}

    async def open(self) -> None:
        """See `Store.open`."""
        with self._calls["open"]:
            await self._store.open()

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        with self._calls["get"]:
            return await self._store.get(session_id)

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        with self._calls["exchanges"]:
            return await self._store.exchanges(session_id, first)

    async def messages(
        self, session_id: str, first: int, max_messages: int, max_bytes: int
    ) -> HistoryPart | None:
        """See `Store.messages`."""
        with self._calls["messages"]:
            return await self._store.messages(session_id, first, max_messages, max_bytes)

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """See `Store.commit`."""
        with _Timer("commit", self._add_commit):
            return await self._store.commit(commit)

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """See `Store.fork`."""
        with _Timer("fork", self._add_commit):
            return await self._store.fork(commit, parent_id)

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        with self._calls["size_at"]:
            return await self._store.size_at(session_id, exchange_count)

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """See `Store.begin_turn`."""
        with self._calls["begin"]:
            return await self._store.begin_turn(session_id, request_id, now)

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`."""
        with self._calls["touch"]:
            return await self._store.touch(session_id, now)

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        """See `Store.end`."""
        with self._calls["end"]:
            return await self._store.end(session_id, gone=gone, now=now)

    async def gone(self, session_id: str, now: float) -> Gone | None:
        """See `Store.gone`."""
        with self._calls["gone"]:
            return await self._store.gone(session_id, now)

    async def usage(self, tenant: str) -> StoreUsage:
        """See `Store.usage`."""
        with self._calls["usage"]:
            return await self._store.usage(tenant)

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`."""
        with self._calls["expire"]:
            return await self._store.expire(now, protected)

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
        with self._calls["list"]:
            return await self._store.list(
                after=after,
                limit=limit,
                labels=labels,
                now=now,
                active_or_in_turn=active_or_in_turn,
                tenant=tenant,
            )

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """See `Store.idempotency_record`."""
        with self._calls["receipt"]:
            return await self._store.idempotency_record(session_id, request_id)

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        with self._calls["completion"]:
            return await self._store.completion(completion_id)

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        with self._calls["created_by"]:
            return await self._store.created_by(request_id)

    async def turns(self, session_id: str, first: int, end: int) -> Sequence[StoredTurn]:
        """See `Store.turns`."""
        with self._calls["turns"]:
            return await self._store.turns(session_id, first, end)

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """See `Store.counts`."""
        with self._calls["counts"]:
            return await self._store.counts(now, active_or_in_turn, tenant)

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """See `Store.tenants`."""
        with self._calls["tenants"]:
            return await self._store.tenants(now, after, limit, active_or_in_turn)

    def _add_commit(self, operation: str, error: BaseException | None, seconds: float) -> None:
        self._calls[operation].count(error)
        reason = _reason(error)
        context = get_current()
        self._deferred.add(self._record, operation, reason, context, seconds, time.time_ns())

    def _record(
        self, operation: str, error: str, context: Context, seconds: float, ended: int
    ) -> None:
        if not error and seconds < self._min_span_seconds:
            self._instruments.record_commit(operation, error, seconds, context)
            return
        span = self._tracer.start_span(
            f"ruvd.store.{operation}", context, start_time=ended - int(seconds * 1e9)
        )
        context = trace.set_span_in_context(span, context)
        self._instruments.record_commit(operation, error, seconds, context)
        attributes = {"ruvd.store.operation": operation, "ruvd.store.kind": self._kind}
        end_span(span, attributes, error, ended)


class _ErrorCounter:
    """A context manager that counts the failures of one operation of an unavailable store.

    It has no state, so all calls share it.
    """

    def __init__(self, instruments: Instruments, operation: str) -> None:
        self._instruments = instruments
        self._operation = operation

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self.count(error)

    def count(self, error: BaseException | None) -> None:
        """Counts a call that ended with `error`, if the store was unavailable."""
        if isinstance(error, StoreUnavailable):
            self._instruments.count_store_error(self._operation)


class _Timer:
    """A context manager that tells `ended` the operation, its error and its duration."""

    __slots__ = ("_ended", "_operation", "_started")

    def __init__(
        self, operation: str, ended: Callable[[str, BaseException | None, float], None]
    ) -> None:
        self._operation = operation
        self._ended = ended

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self._ended(self._operation, error, time.perf_counter() - self._started)


def _reason(error: BaseException | None) -> str:
    """Returns the `error.type` of a commit, which is empty if it succeeded."""
    if error is None:
        return ""
    if isinstance(error, asyncio.CancelledError):
        return _CANCELLED
    return error.reason() if isinstance(error, RuvdError) else _OTHER
