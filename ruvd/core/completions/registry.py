"""The completions that run, and those that ended a while ago; and the way back to them.

Events stay for a while after the end, bounded in time and bytes, so that a cut stream can be
resumed; after that, and after a restart, the store has the `Finished` of what was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ruvd.core.completions.completion import (
    Completion,
    CompletionPolicy,
    CompletionRef,
    CompletionRequest,
)
from ruvd.core.completions.event_log import EventLog
from ruvd.core.completions.generation import AnswerGenerator
from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.completions.turn import TurnRunner
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionNotFound,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
)
from ruvd.core.model import CompletionEvent, IdempotencyRecord, Session
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import CompletionBegan, CompletionJoined, Observer
from ruvd.core.sessions import idempotency
from ruvd.core.sessions.registry import SessionRegistry

# An allowance for an ended completion beside its events; bench/streams.py shows the sum.
_COMPLETION_BYTES = 3000


class CompletionRegistry:
    """Starts completions, and knows those that run and those that ended a while ago.

    `on_turn` is told of each session whose turn was committed.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        engine: Engine,
        clock: Clock,
        observer: Observer,
        policy: CompletionPolicy,
    ) -> None:
        self.on_turn: Callable[[Session, CompletionOptions], None] | None = None
        self._sessions = sessions
        self.scheduler = SlotScheduler(engine.slots, policy.batch_share)
        self._generator = AnswerGenerator(engine, clock, self.scheduler, observer)
        self._turns = TurnRunner(sessions, self._generator, clock, self._kept, self._told)
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self._running: dict[str, Completion] = {}
        self._ended: dict[str, Completion] = {}
        self._by_request: dict[tuple[str, str], Completion] = {}
        self._logs_bytes = 0
        self._draining = False

    @property
    def running(self) -> int:
        """How many completions run or wait."""
        return len(self._running)

    @property
    def log_bytes(self) -> int:
        """What the events hold in memory, of completions that run and of those that ended."""
        return self._logs_bytes + sum(each.log.size_bytes for each in list(self._running.values()))

    def start(self, request: CompletionRequest) -> Completion:
        """Begin a completion, in the order of the calls, or attach to that of the request id.

        Raises RequestIdReused, Overloaded, and ShuttingDown while draining.
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
        if len(self._running) >= self._policy.max_inflight:
            raise Overloaded(
                f"{self._policy.max_inflight} completions run or wait (max_inflight); try again"
            )
        completion = Completion(request, self._clock.monotonic(), self._policy.max_log_bytes)
        self._running[completion.id] = completion
        self._observer(CompletionBegan(completion.id))
        if request.request_id:
            self._by_request[key] = completion
        running = self._turns.run(completion, request, known)
        task = asyncio.create_task(running, name=completion.id)
        completion.run(task)
        task.add_done_callback(lambda _: self._retire(completion, request.options))
        return completion

    async def resume(
        self, ref: CompletionRef, after: int, *, is_out_of_time: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[CompletionEvent, None]:
        """The events above `after`, as they come; see `Completion.events`. Raises
        CompletionNotFound."""
        completion = self._find(ref)
        if completion is None:
            idempotency_record = await self._receipt(ref)
            completion = self._ended.get(idempotency_record.completion_id)
            if completion is None:
                self._observer(CompletionJoined(idempotency_record.completion_id, resumed=True))
                _check_after(after, idempotency_record.last_sequence)
                if idempotency_record.finished and after < idempotency_record.last_sequence:
                    yield CompletionEvent(
                        idempotency_record.last_sequence, idempotency_record.finished
                    )
                return
        # Without an event yet it may be a repeat whose first events are being looked up.
        if completion.log.last_sequence:
            _check_after(after, completion.log.last_sequence)
        self._observer(CompletionJoined(completion.id, resumed=True))
        async with aclosing(completion.events(after, is_out_of_time=is_out_of_time)) as events:
            async for event in events:
                yield event

    async def cancel(self, ref: CompletionRef, *, keep_partial: bool) -> None:
        """Stop a completion and wait for its end. Raises CompletionNotFound."""
        completion = self._find(ref)
        if completion is None:
            await self._receipt(ref)
            return
        completion.cancel(
            CompletionCancelled("cancelled by CancelCompletion"), keep_partial=keep_partial
        )
        await completion.ended()

    async def drain(self, seconds: float) -> None:
        """Start nothing new, let what runs or waits end; after `seconds` cancel what is left."""
        self._draining = True
        running = [asyncio.create_task(each.ended()) for each in self._running.values()]
        if running:
            await asyncio.wait(running, timeout=seconds)
        for completion in list(self._running.values()):
            completion.cancel(ShuttingDown("the daemon stopped before the answer was complete"))
        if running:
            await asyncio.wait(running)

    def _told(self, session: Session, options: CompletionOptions) -> None:
        if self.on_turn:
            self.on_turn(session, options)

    def _kept(self, completion_id: str) -> EventLog | None:
        completion = self._ended.get(completion_id)
        return completion.log if completion else None

    def _find(self, ref: CompletionRef) -> Completion | None:
        if ref.completion_id:
            return self._running.get(ref.completion_id) or self._ended.get(ref.completion_id)
        return self._by_request.get((ref.session_id, ref.request_id))

    async def _receipt(self, ref: CompletionRef) -> IdempotencyRecord:
        if ref.completion_id:
            idempotency_record = await self._sessions.completion(ref.completion_id)
        else:
            idempotency_record = await self._sessions.idempotency_record(
                ref.session_id, ref.request_id
            )
        if idempotency_record is None or not idempotency_record.completion_id:
            raise CompletionNotFound(
                "there is no such completion: it was not committed, and its events are gone; "
                "call Complete again"
            )
        return idempotency_record

    def _retire(self, completion: Completion, options: CompletionOptions) -> None:
        """Report a completion that ended, and keep its events for a while."""
        del self._running[completion.id]
        # In a session the store answers from now on; a failed request id is free again.
        if completion.session_id or completion.error:
            self._release(completion)
        if completion.replayed:
            self._observer(CompletionJoined(completion.replayed, resumed=False))
            return
        self._observer(completion.report(self._generator.model(options), self._clock.monotonic()))
        completion.ended_at = self._clock.monotonic()
        self._ended[completion.id] = completion
        self._logs_bytes += _COMPLETION_BYTES + completion.log.size_bytes
        self._expire()

    def _expire(self) -> None:
        """Forget the oldest of the ended, where they are too old or too large together."""
        horizon = self._clock.monotonic() - self._policy.retention_seconds
        while self._ended:
            oldest = next(iter(self._ended.values()))
            recent = oldest.ended_at is not None and oldest.ended_at > horizon
            if recent and self._logs_bytes <= self._policy.max_logs_bytes:
                return
            del self._ended[oldest.id]
            self._logs_bytes -= _COMPLETION_BYTES + oldest.log.size_bytes
            self._release(oldest)

    def _release(self, completion: Completion) -> None:
        """Free its request id, unless a later completion has it by now."""
        key = (completion.session_id, completion.request_id)
        if self._by_request.get(key) is completion:
            del self._by_request[key]


def _check_after(after: int, last: int) -> None:
    if after > last:
        text = f"the completion has {last} events"
        raise InvalidRequest([FieldViolation("after_sequence", text)])
