"""The completions that run, and those that ended recently, for resume, cancel and repeats.

Events are kept for a while after the end, bounded in time and bytes, so that a cut stream can be
resumed. After that, and after a restart, the store has the `Finished` of every committed turn.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager

from ruvd.core import ids
from ruvd.core.completions.completion import (
    Completion,
    CompletionPolicy,
    CompletionRef,
    CompletionRequest,
)
from ruvd.core.completions.engines import Engines
from ruvd.core.completions.generation import AnswerGenerator
from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.completions.turn import TurnRunner
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionNotFound,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
)
from ruvd.core.model import CompletionEvent, IdempotencyRecord
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import CompletionBegan, CompletionJoined, Observer
from ruvd.core.ports.memory import Memory, UnlimitedMemory
from ruvd.core.ports.replicas import SessionElsewhere
from ruvd.core.sessions import idempotency
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.core.tenants import own

# An allowance for an ended completion beside its events; bench/streams.py shows the sum.
_COMPLETION_BYTES = 3000


class CompletionRegistry:
    """Starts completions, and finds those that run or ended recently."""

    def __init__(
        self,
        sessions: SessionRegistry,
        engine: Engine,
        clock: Clock,
        observer: Observer,
        policy: CompletionPolicy,
        limits_of: LimitsOf = unlimited,
        memory: Memory | None = None,
    ) -> None:
        self._sessions = sessions
        self.engines = Engines(engine, policy.batch_share, limits_of)
        memory = memory or UnlimitedMemory()
        self._generator = AnswerGenerator(
            self.engines, clock, observer, policy.max_answer_bytes, memory, limits_of
        )
        self.quotas = TenantQuotas(limits_of, clock, policy.batch_share)
        self._turns = TurnRunner(sessions, self._generator, clock, observer)
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self._running: dict[str, Completion] = {}
        self._ended: dict[str, Completion] = {}
        self._by_request: dict[tuple[str, str], Completion] = {}
        self._logs_bytes = 0
        self._draining = False

    @property
    def scheduler(self) -> SlotScheduler:
        """The scheduler of the default engine's slots."""
        return self.engines.default.scheduler

    @property
    def running(self) -> int:
        """The number of completions that run or wait."""
        return len(self._running)

    def all_running(self) -> Mapping[str, Completion]:
        """Returns the completions that run or wait by their ids, in the order of their begin."""
        return self._running

    async def wait_idle(self) -> None:
        """Returns when no completion runs or waits. New ones may begin meanwhile."""
        while self._running:
            await next(iter(self._running.values())).ended()
            await asyncio.sleep(0)  # the callbacks of its task take it out

    @property
    def log_bytes(self) -> int:
        """The memory that the events of running and ended completions hold, in bytes."""
        return self._logs_bytes + sum(each.log.size_bytes for each in list(self._running.values()))

    def start(self, request: CompletionRequest) -> Completion:
        """Begins a completion, or returns the one that already runs under the request id.

        Turns of a session run in the order of these calls. Raises RequestIdReused, QuotaExceeded,
        Overloaded, and ShuttingDown while draining.
        """
        self._expire()
        key = (request.session_id, request.request_id)
        known = self._by_request.get(key) if request.request_id else None
        if known and not known.stopping:
            idempotency.check(known.digest, request.digest(), request.request_id)
            self._observer(CompletionJoined(known.id, resumed=False))
            return known
        if self._draining:
            raise ShuttingDown("the daemon is shutting down; call the next one")
        self.quotas.check(request.tenant, batch=request.batch)
        if len(self._running) >= self._policy.max_inflight:
            raise Overloaded(
                f"{self._policy.max_inflight} completions run or wait (max_inflight); try again"
            )
        completion = Completion(
            request, self._clock, self._policy.max_log_bytes, self._policy.replica
        )
        self._running[completion.id] = completion
        self.quotas.begin(request.tenant, batch=request.batch)
        self._observer(CompletionBegan(completion.id))
        if request.request_id:
            self._by_request[key] = completion
        task = asyncio.create_task(self._run(completion, request, known), name=completion.id)
        completion.run(task)
        task.add_done_callback(lambda _: self._retire(completion, request))
        return completion

    def knows(self, ref: CompletionRef) -> bool:
        """Whether the completion runs here, or its events are kept here."""
        return self.kept(ref) is not None

    async def resume(
        self, ref: CompletionRef, after: int, *, is_out_of_time: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[CompletionEvent, None]:
        """Yields the events above `after`, as they come; see `Completion.events`.

        Raises CompletionNotFound, and InvalidRequest if there are fewer than `after` events.
        """
        completion = self.kept(ref)
        if completion is None:
            record = await self._record(ref)
            completion = self._answered(record.completion_id)
            if completion is None:
                self._observer(CompletionJoined(record.completion_id, resumed=True))
                _check_after(after, record.last_sequence)
                if record.finished and after < record.last_sequence:
                    yield CompletionEvent(record.last_sequence, record.finished)
                return
        # A completion without events may be a repeat, whose events are still being looked up.
        if completion.log.last_sequence:
            _check_after(after, completion.log.last_sequence)
        self._observer(CompletionJoined(completion.id, resumed=True))
        async with aclosing(completion.events(after, is_out_of_time=is_out_of_time)) as events:
            async for event in events:
                yield event

    async def cancel(self, ref: CompletionRef, *, keep_partial: bool) -> None:
        """Stops a completion and waits for its end. Raises CompletionNotFound."""
        completion = self.kept(ref)
        if completion is None:
            await self._record(ref)
            return
        completion.cancel(
            CompletionCancelled("cancelled by CancelCompletion"), keep_partial=keep_partial
        )
        await completion.ended()

    @contextmanager
    def other_work(self, tenant: str) -> Generator[Counter[str], None, None]:
        """Counts work of a tenant that is no completion, and uses the engine as one does.

        What it adds to the `tokens` of the counter counts for the tenant. Raises as `start` does.
        """
        if self._draining:
            raise ShuttingDown("the daemon is shutting down; call the next one")
        self.quotas.check(tenant)
        self.quotas.begin(tenant, batch=False)
        used: Counter[str] = Counter()
        try:
            yield used
        finally:
            self.quotas.end(tenant, batch=False, tokens=lambda: used["tokens"])

    def shed(self) -> bool:
        """Fails the largest tenth of the running completions. Returns False if there are none."""
        running = [each for each in self._running.values() if each.can_be_cancelled]
        running.sort(key=lambda each: each.log.size_bytes, reverse=True)
        for completion in running[: len(running) // 10 + 1]:
            completion.cancel(Overloaded("the daemon's memory is used up (max_memory_bytes)"))
        return bool(running)

    async def drain(self, seconds: float) -> None:
        """Refuses new completions and lets the others end; cancels those left after `seconds`."""
        self._draining = True
        running = [asyncio.create_task(each.ended()) for each in self._running.values()]
        if running:
            await asyncio.wait(running, timeout=seconds)
        for completion in list(self._running.values()):
            completion.cancel(ShuttingDown("the daemon stopped before the answer was complete"))
        if running:
            await asyncio.wait(running)

    async def _run(
        self, completion: Completion, request: CompletionRequest, before: Completion | None
    ) -> None:
        record = await self._turns.run(completion, request, before)
        if record is None:
            return
        if ended := self._answered(record.completion_id):
            completion.log.adopt(ended.log)
        elif request.may_move and ids.is_of_another(
            own(record.completion_id), self._policy.replica
        ):
            raise SessionElsewhere(request.session_id, completion_id=record.completion_id)
        elif record.finished:
            completion.log.append(record.finished, record.last_sequence)
        completion.replayed = record.completion_id

    def _answered(self, completion_id: str) -> Completion | None:
        """Returns a committed completion that is kept, unless it was told that its commit failed.

        The events of such a one end with an error, while the store has its answer.
        """
        ended = self._ended.get(completion_id)
        return ended if ended and ended.error is None else None

    def kept(self, ref: CompletionRef) -> Completion | None:
        """Returns a completion that runs here, or whose events are kept here."""
        if ref.completion_id:
            return self._running.get(ref.completion_id) or self._ended.get(ref.completion_id)
        return self._by_request.get((ref.session_id, ref.request_id))

    async def _record(self, ref: CompletionRef) -> IdempotencyRecord:
        """Returns the record of a committed completion. Raises CompletionNotFound."""
        if ref.completion_id:
            record = await self._sessions.completion(ref.completion_id)
        else:
            record = await self._sessions.idempotency_record(ref.session_id, ref.request_id)
        if record is None or not record.completion_id:
            raise CompletionNotFound(
                "there is no such completion: it was not committed, and its events are gone; "
                "call Complete again"
            )
        return record

    def _retire(self, completion: Completion, request: CompletionRequest) -> None:
        """Reports a completion that has ended, and keeps its events for a while."""
        del self._running[completion.id]
        self.quotas.end(
            request.tenant,
            batch=request.batch,
            tokens=lambda: completion.answer.tokens(cancelled=completion.stopping),
        )
        self._generator.release(completion.answer)
        # The store knows what a session committed, and the request id of a failure is free again.
        if completion.session_id or completion.error:
            self._release(completion)
        if isinstance(completion.error, SessionElsewhere) and request.may_move:
            return  # it has not begun, and the owner of the session reports it
        if completion.replayed:
            self._observer(CompletionJoined(completion.replayed, resumed=False))
            return
        model = self._generator.model(request.options)
        self._observer(completion.report(model, self._clock.monotonic()))
        completion.ended_at = self._clock.monotonic()
        self._ended[completion.id] = completion
        completion.kept_bytes = _COMPLETION_BYTES + completion.log.kept_bytes
        self._logs_bytes += completion.kept_bytes
        self._expire()

    def _expire(self) -> None:
        """Forgets the oldest ended completions that are too old or exceed the limit in bytes."""
        horizon = self._clock.monotonic() - self._policy.retention_seconds
        while self._ended:
            oldest = next(iter(self._ended.values()))
            recent = oldest.ended_at is not None and oldest.ended_at > horizon
            if recent and self._logs_bytes <= self._policy.max_logs_bytes:
                return
            del self._ended[oldest.id]
            self._logs_bytes -= oldest.kept_bytes
            self._release(oldest)

    def _release(self, completion: Completion) -> None:
        """Frees the completion's request id, unless a later completion uses it now."""
        key = (completion.session_id, completion.request_id)
        if self._by_request.get(key) is completion:
            del self._by_request[key]


def _check_after(after: int, last: int) -> None:
    if after > last:
        text = f"the completion has {last} events"
        raise InvalidRequest([FieldViolation("after_sequence", text)])
