"""One answer from the engine: a slot, the stream, one retry after an overflow, the figures.

This module knows nothing of turns or commits. After a cancel, `Answer` holds what came so far.
"""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ruvd.core.completions import allowances
from ruvd.core.completions.event_log import EventLog
from ruvd.core.completions.growing_text import GrowingText
from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.errors import ContextTooLong, EngineRejected, EngineUnavailable, Overloaded
from ruvd.core.model import (
    Exchange,
    Finished,
    FinishReason,
    Message,
    Role,
    Session,
    Started,
    Timings,
    ToolCall,
    ToolCallDelta,
)
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import (
    NO_DATA,
    Engine,
    EngineDone,
    EngineReasoning,
    EngineRequest,
    EngineText,
)
from ruvd.core.ports.events import EngineTaken, Observer
from ruvd.core.ports.memory import Memory
from ruvd.core.sessions import window
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.core.tenants import tenant_of
from ruvd.core.values import value

AnswerChunk: TypeAlias = EngineText | EngineReasoning | ToolCallDelta

# An allowance for the objects of a tool call's delta, which may be empty.
_DELTA_BYTES = 64
_BYTES_PER_TOKEN = 4
# The part of an answer for which no memory is reserved, and the steps that reserve it for the rest.
_FREE_BYTES = 2 << 20
_STEP_BYTES = 1 << 20


@value(frozen=True, slots=True)
class Prompt:
    """The input of a generation. `history` is the session's, from its window's start on."""

    completion_id: str
    session: Session
    history: Sequence[Exchange]
    messages: Sequence[Message]
    options: CompletionOptions
    creates: bool = False
    batch: bool = False
    prefix_key: str = ""


@dataclass(eq=False, slots=True)
class Answer:
    """An answer while it is generated. Times are those of the monotonic clock."""

    arrived: float
    plan: window.Plan | None = None
    queue_seconds: float | None = None
    text: GrowingText = field(default_factory=GrowingText)
    reasoning: GrowingText = field(default_factory=GrowingText)
    tool_calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    reserved_bytes: int = 0
    first_output: float | None = None
    done: EngineDone | None = None
    model: str = ""

    @property
    def message(self) -> Message:
        """The answer as far as it has come."""
        data = self.done.call_data if self.done else NO_DATA
        return Message(
            Role.ASSISTANT,
            self.text.joined(),
            tool_calls=tuple(
                _tool_call(deltas, data.get(number, ""))
                for number, deltas in sorted(self.tool_calls.items())
            ),
            reasoning=self.reasoning.joined(),
            engine_data=self.done.message_data if self.done else "",
        )

    def tokens(self, *, cancelled: bool) -> int:
        """Returns the tokens that count against a quota: those evaluated and generated.

        If the engine has not reported them, because it does not or because the answer has not
        ended, they are estimated by the bytes of the prompt and the answer. What the engine refused
        before it answered counts nothing.
        """
        usage = self.done.usage if self.done else None
        if usage:
            return usage.prompt_tokens - (usage.cached_tokens or 0) + usage.completion_tokens
        if self.plan is None or (self.first_output is None and not cancelled):
            return 0
        return -(-(self.plan.size_bytes + self.message.size_bytes) // _BYTES_PER_TOKEN)

    def timings(self, now: float) -> Timings:
        """Returns the durations until `now`."""
        first = self.first_output
        total = now - self.arrived
        return Timings(
            queue_seconds=total if self.queue_seconds is None else self.queue_seconds,
            time_to_first_token_seconds=None if first is None else first - self.arrived,
            total_seconds=total,
            prefill_seconds=self.done.prefill_seconds if self.done else None,
        )

    def finished(self, done: EngineDone, now: float, *, exchange_count: int) -> Finished:
        """Returns the event that ends the completion."""
        return Finished(
            done.finish_reason,
            self.message,
            done.usage,
            self.timings(now),
            exchange_count,
            done.raw_finish_reason,
        )


class AnswerGenerator:
    """Generates answers, at most as many at a time as the engine has slots.

    An answer that reaches `max_answer_bytes` ends there, with the finish reason LENGTH. A long one
    reserves memory as it grows, which `release` gives back, and ends where there is none.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        scheduler: SlotScheduler,
        observer: Observer,
        max_answer_bytes: int,
        memory: Memory,
        limits_of: LimitsOf = unlimited,
    ) -> None:
        self._memory = memory
        self._max_answer_bytes = max_answer_bytes
        self._limits_of = limits_of
        self._engine = engine
        self._clock = clock
        self._scheduler = scheduler
        self._observer = observer

    def model(self, options: CompletionOptions, session: Session | None = None) -> str:
        """Returns the name of the model that answers."""
        return options.model or (session.model if session else "") or self._engine.model

    def release(self, answer: Answer) -> None:
        """Gives back the memory that an answer has reserved."""
        self._memory.release(answer.reserved_bytes)
        answer.reserved_bytes = 0

    async def generate(self, prompt: Prompt, log: EventLog, answer: Answer) -> EngineDone:
        """Fills `log` and `answer` with one generation, once the engine is up and has a slot.

        No slot is held while the engine starts. Raises as `Engine.ready` and `Engine.generate` do,
        and PermissionDenied for a model that the tenant may not use.
        """
        session, tenant = prompt.session, tenant_of(prompt.completion_id)
        allowances.check_model(self.model(prompt.options, session), self._limits_of(tenant))
        limit = self._engine.window_tokens if session.id else None
        plan = window.plan(session, prompt.history, prompt.messages, default_max_tokens=limit)
        while True:
            if not self._engine.is_ready:
                with self._scheduler.count_as_waiting(batch=prompt.batch):
                    await self._engine.ready()
            async with self._scheduler.take(batch=prompt.batch, tenant=tenant):
                if self._engine.is_ready:  # or it went down while this waited for the slot
                    return await self._generate(prompt, plan, log, answer)

    async def _generate(
        self, prompt: Prompt, plan: window.Plan, log: EventLog, answer: Answer
    ) -> EngineDone:
        session = prompt.session
        answer.plan = plan
        answer.queue_seconds = self._clock.monotonic() - answer.arrived
        answer.model = self.model(prompt.options, session)
        self._observer(EngineTaken(prompt.completion_id, prompt.batch, answer.queue_seconds))
        started = Started(
            completion_id=prompt.completion_id,
            session_id=session.id,
            session_created=prompt.creates,
            model=answer.model,
            context_messages=len(plan.messages),
            context_trimmed=plan.trimmed,
        )
        log.append(started)
        try:
            return await self._stream(prompt, plan, log, answer)
        except ContextTooLong as overflow:
            shorter = window.shorten(
                session, prompt.history, prompt.messages, refused=plan, overflow=overflow
            )
            if shorter is None or answer.first_output is not None:
                raise
            answer.plan = shorter
            return await self._stream(prompt, shorter, log, answer)

    async def _stream(
        self, prompt: Prompt, plan: window.Plan, log: EventLog, answer: Answer
    ) -> EngineDone:
        options, own = prompt.options, prompt.session.model
        if own and not options.model:
            options = replace(options, model=own)
        tenant = tenant_of(prompt.completion_id)
        limits = self._limits_of(tenant)
        options = allowances.with_ceiling(options, limits)
        request = EngineRequest(
            plan.messages, options, prompt.session.id, prompt.prefix_key, tenant=tenant
        )
        most = self._max_answer_bytes
        if limits.max_answer_bytes is not None:
            most = min(most, limits.max_answer_bytes)
        room = min(_FREE_BYTES, most)
        left = most - room
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, EngineDone):
                    answer.done = chunk
                    continue
                if answer.first_output is None:
                    answer.first_output = self._clock.monotonic()
                size = _size(chunk)
                while (
                    size > room and left and self._reserve(step := min(left, _STEP_BYTES), answer)
                ):
                    room, left = room + step, left - step
                if size > room:
                    answer.done = _end(chunk, room, log, answer, most, lacks_memory=left > 0)
                    break
                room -= size
                _append(chunk, log, answer)
        if answer.done is None:
            raise EngineUnavailable("the engine's answer ended before it was complete")
        return answer.done

    def _reserve(self, size: int, answer: Answer) -> bool:
        is_reserved = self._memory.try_reserve(size)
        if is_reserved:
            answer.reserved_bytes += size
        return is_reserved


def _end(
    chunk: AnswerChunk,
    room: int,
    log: EventLog,
    answer: Answer,
    most: int,
    *,
    lacks_memory: bool,
) -> EngineDone:
    """Adds as much of a chunk as there is room for, and returns the early end.

    An answer with tool calls fails, because half a call is useless: with Overloaded if it
    `lacks_memory`, else with EngineRejected.
    """
    word = "max_memory_bytes" if lacks_memory else "max_answer_bytes"
    if answer.tool_calls or isinstance(chunk, ToolCallDelta):
        if lacks_memory:
            raise Overloaded(f"there is no memory for the rest of the answer ({word})")
        raise EngineRejected(f"the answer with its tool calls has more than {most} bytes ({word})")
    if text := chunk.text.encode()[:room].decode(errors="ignore"):
        _append(replace(chunk, text=text), log, answer)
    return EngineDone(FinishReason.LENGTH, raw_finish_reason=word)


def _size(chunk: AnswerChunk) -> int:
    if isinstance(chunk, ToolCallDelta):
        return _DELTA_BYTES + len(f"{chunk.id}{chunk.name}{chunk.arguments}".encode())
    return len(chunk.text.encode())


def _append(chunk: AnswerChunk, log: EventLog, answer: Answer) -> None:
    match chunk:
        case EngineText(text):
            answer.text.append(text)
            log.append_text(text)
        case EngineReasoning(text):
            answer.reasoning.append(text)
            log.append_reasoning(text)
        case ToolCallDelta():
            answer.tool_calls.setdefault(chunk.index, []).append(chunk)
            log.append_tool_call(chunk)


def _tool_call(deltas: Sequence[ToolCallDelta], data: str) -> ToolCall:
    arguments = "".join(delta.arguments for delta in deltas)
    return ToolCall(deltas[0].id, deltas[0].name, arguments, data)
