"""One answer from the engine: a slot, the stream, one retry after an overflow, the figures.

This module knows nothing of turns or commits. After a cancel, `Answer` holds what came so far.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing

from ruvd.core.completions import allowances
from ruvd.core.completions.answer import Answer
from ruvd.core.completions.answer_room import AnswerRoom
from ruvd.core.completions.engines import Engines
from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import ContextTooLong, EngineRateLimited, EngineUnavailable
from ruvd.core.model import Exchange, Message, Session, Started
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine, EngineDone, EngineRequest
from ruvd.core.ports.events import EngineTaken, Observer
from ruvd.core.ports.memory import Memory, reserved
from ruvd.core.sessions import window
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.core.tenants import tenant_of
from ruvd.core.values import value

# The history of a prompt for which no memory is reserved.
_FREE_HISTORY_BYTES = 1 << 20


@value(frozen=True, slots=True)
class Prompt:
    """The input of a generation. `history` is the session's, from its window's start on.

    `pinned` are the session's pinned exchanges. The first `stored` messages are in the history.
    """

    completion_id: str
    session: Session
    history: Sequence[Exchange]
    messages: Sequence[Message]
    options: CompletionOptions
    creates: bool = False
    batch: bool = False
    prefix_key: str = ""
    pinned: Sequence[Exchange] = ()
    stored: int = 0


class AnswerGenerator:
    """Generates answers, at most as many at a time as the engine has slots.

    An answer that reaches `max_answer_bytes` ends there, with the finish reason LENGTH. A long one
    reserves memory as it grows, which `release` gives back, and ends where there is none.
    """

    def __init__(
        self,
        engines: Engines,
        clock: Clock,
        observer: Observer,
        max_answer_bytes: int,
        memory: Memory,
        limits_of: LimitsOf = unlimited,
    ) -> None:
        self._memory = memory
        self._max_answer_bytes = max_answer_bytes
        self._limits_of = limits_of
        self._engines = engines
        self._clock = clock
        self._observer = observer

    def model(self, options: CompletionOptions, session: Session | None = None) -> str:
        """Returns the name of the model that answers."""
        return options.model or (session.model if session else "") or self._engines.default_model

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
        while True:
            engine, scheduler, _ = self._engines.of(prompt.options.model or session.model)
            plan = window.plan(
                session,
                prompt.history,
                prompt.messages,
                default_max_tokens=engine.window_tokens if session.id else None,
                pinned=prompt.pinned,
                stored=prompt.stored,
            )
            if not engine.is_ready:
                with scheduler.count_as_waiting(batch=prompt.batch):
                    await engine.ready()
            narrowings = scheduler.narrowings
            try:
                async with scheduler.take(batch=prompt.batch, tenant=tenant):
                    if not engine.is_ready:
                        continue  # it went down, or was replaced, while this waited for the slot
                    done = await self._generate(engine, prompt, plan, log, answer)
            except EngineRateLimited:
                if prompt.batch:
                    scheduler.narrow(narrowings)
                raise
            if prompt.batch:
                scheduler.widen()
            return done

    async def _generate(
        self, engine: Engine, prompt: Prompt, plan: window.Plan, log: EventLog, answer: Answer
    ) -> EngineDone:
        session = prompt.session
        answer.plan = plan
        answer.queue_seconds = self._clock.monotonic() - answer.arrived
        answer.model = self.model(prompt.options, session)
        answer.engine = engine.name
        self._observer(EngineTaken(prompt.completion_id, prompt.batch, answer.queue_seconds))
        started = Started(
            completion_id=prompt.completion_id,
            session_id=session.id,
            session_created=prompt.creates,
            model=answer.model,
            context_messages=len(plan.messages),
            context_trimmed=plan.trimmed,
            context_summarized=plan.summarized,
        )
        log.append(started)
        try:
            return await self._stream(engine, prompt, plan, log, answer)
        except ContextTooLong as overflow:
            shorter = window.shorten(
                session,
                prompt.history,
                prompt.messages,
                refused=plan,
                overflow=overflow,
                pinned=prompt.pinned,
                stored=prompt.stored,
            )
            if shorter is None or answer.first_output is not None:
                raise
            answer.plan = shorter
            return await self._stream(engine, prompt, shorter, log, answer)

    async def _stream(
        self, engine: Engine, prompt: Prompt, plan: window.Plan, log: EventLog, answer: Answer
    ) -> EngineDone:
        options = prompt.options.for_model(prompt.session.model)
        tenant = tenant_of(prompt.completion_id)
        limits = self._limits_of(tenant)
        options = allowances.with_ceiling(options, limits)
        request = EngineRequest(
            plan.messages, options, prompt.session.id, prompt.prefix_key, tenant=tenant
        )
        most = self._max_answer_bytes
        if limits.max_answer_bytes is not None:
            most = min(most, limits.max_answer_bytes)
        room = AnswerRoom(most, self._memory, answer)
        async with AsyncExitStack() as stack:
            prompt_memory = stack.enter_context(ExitStack())
            if size := _large_history_bytes(prompt, plan):
                prompt_memory.enter_context(reserved(self._memory, size, "so large a prompt"))
            chunks = await stack.enter_async_context(aclosing(engine.generate(request)))
            async for chunk in chunks:
                if isinstance(chunk, EngineDone):
                    answer.done = chunk
                    continue
                if answer.first_output is None:
                    answer.first_output = self._clock.monotonic()
                    prompt_memory.close()
                if end := room.add(chunk, log):
                    answer.done = end
                    break
        if answer.done is None:
            raise EngineUnavailable("the engine's answer ended before it was complete")
        return answer.done


def _large_history_bytes(prompt: Prompt, plan: window.Plan) -> int:
    """Returns the size of the history in a prompt; 0 if it needs no reservation.

    The memory of the new messages is reserved with their request.
    """
    if prompt.session.size_bytes <= _FREE_HISTORY_BYTES:
        return 0
    history = plan.size_bytes - sum(message.size_bytes for message in prompt.messages)
    return history if history > _FREE_HISTORY_BYTES else 0
