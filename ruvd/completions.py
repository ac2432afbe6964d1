"""A running completion: its order, its events, its cancellation, its commit.

A completion is a task of its own, so that it outlives the call that began it; the call is one
reader of its event log. Every way to end it early is `Completion.cancel`, which says why, and
which comes too late once the commit has begun: then the turn is as good as finished.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace

from ruvd import context
from ruvd.errors import (
    CompletionCancelled,
    ContextTooLong,
    EngineUnavailable,
    InvalidRequest,
    RuvdError,
    ShuttingDown,
)
from ruvd.errors import FieldViolation as Violation
from ruvd.eventlog import EventLog
from ruvd.lanes import Holder
from ruvd.model import (
    CompletionEvent,
    CompletionOptions,
    Exchange,
    Finished,
    IfBusy,
    Message,
    Receipt,
    Role,
    Session,
    Started,
    Timings,
    Usage,
)
from ruvd.ports import (
    Clock,
    Commit,
    CompletionEnded,
    Engine,
    EngineDone,
    EngineRequest,
    EngineText,
    Observer,
)
from ruvd.sessions import Sessions


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a caller asks for. An empty `session_id` is a stateless completion."""

    messages: Sequence[Message]
    session_id: str = ""
    options: CompletionOptions = CompletionOptions()
    system_prompt: str = ""
    require_existing: bool = False
    if_busy: IfBusy = IfBusy.QUEUE


@dataclass(eq=False, slots=True)
class _Answer:
    """What is known of the answer while it comes."""

    plan: context.Plan
    arrived: float
    queue_seconds: float
    text: list[str] = field(default_factory=list)
    first_text: float | None = None
    done: EngineDone | None = None


class Completion:
    """One generation, running or ended. Made by `Completions.start`."""

    def __init__(self, request: CompletionRequest, arrived: float) -> None:
        self.id = f"cmpl-{secrets.token_urlsafe(18)}"
        self.request = request
        self.arrived = arrived
        self.log = EventLog()
        self.answer: _Answer | None = None
        self.committing = False
        self._reason: RuvdError | None = None
        self._readers = 0
        self._task: asyncio.Task[Finished] | None = None

    def run(self, task: asyncio.Task[Finished]) -> None:
        """Take the task that generates; the log closes with it."""
        self._task = task
        task.add_done_callback(self._ended)

    def cancel(self, reason: RuvdError) -> None:
        """Stop, with `reason` for the readers; too late once the commit has begun."""
        if self._task and not self._task.done() and not self.committing and not self._reason:
            self._reason = reason
            self._task.cancel()

    async def events(self, after: int = 0) -> AsyncGenerator[CompletionEvent, None]:
        """The events above `after`; raises what the completion failed with.

        Close it (`aclosing`) when the reader leaves: with the last reader the completion is
        cancelled.
        """
        self._readers += 1
        try:
            async with aclosing(self.log.read(after)) as events:
                async for event in events:
                    yield event
        finally:
            self._readers -= 1
            if not self._readers:
                self.cancel(CompletionCancelled("the caller has gone"))

    def error(self) -> BaseException | None:
        """What the ended completion failed with."""
        task = self._task
        if task is None or not task.done():
            return None
        if task.cancelled() or (self._reason and task.exception()):
            return self._reason or CompletionCancelled("the daemon stopped")
        return task.exception()

    def _ended(self, _task: asyncio.Task[Finished]) -> None:
        self.log.close(self.error())


class Completions:
    """Starts completions and knows those that run."""

    def __init__(
        self, sessions: Sessions, engine: Engine, clock: Clock, observer: Observer
    ) -> None:
        self._sessions = sessions
        self._engine = engine
        self._clock = clock
        self._observer = observer
        self._slots = asyncio.Semaphore(engine.slots) if engine.slots else None
        self._running: dict[str, Completion] = {}
        self._tasks: set[asyncio.Task[Finished]] = set()
        self._draining = False

    def start(self, request: CompletionRequest) -> Completion:
        """Begin a completion, in the order of the calls. Raises ShuttingDown while draining."""
        if self._draining:
            raise ShuttingDown("the daemon is shutting down; call the next one")
        completion = Completion(request, self._clock.monotonic())
        task = asyncio.create_task(self._run(completion), name=completion.id)
        completion.run(task)
        self._running[completion.id] = completion
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._report(self._running.pop(completion.id)))
        return completion

    async def drain(self, seconds: float) -> None:
        """Start nothing new, let what runs or waits end; after `seconds` cancel what is left."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for completion in list(self._running.values()):
            completion.cancel(ShuttingDown("the daemon stopped before the answer was complete"))
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def running(self) -> int:
        """How many completions run or wait."""
        return len(self._running)

    # --- one completion ---------------------------------------------------------------------

    async def _run(self, completion: Completion) -> Finished:
        request = completion.request
        if not request.session_id:
            return await self._stateless(completion)
        holder = Holder(completion.id, completion.cancel)
        async with self._sessions.lanes.turn(request.session_id, holder, request.if_busy):
            session = await self._sessions.begin(
                request.session_id,
                holder,
                request.system_prompt,
                require_existing=request.require_existing,
            )
            try:
                return await self._turn(completion, session, new=holder.newcomer is not None)
            finally:
                if not completion.committing and holder.newcomer is None:
                    await self._sessions.touch(session.id)

    async def _stateless(self, completion: Completion) -> Finished:
        request = completion.request
        session = Session("", 0.0, 0.0, 0.0, system_prompt=request.system_prompt)
        session, messages = _adopt_system(session, request.messages)
        plan = context.plan(session, (), messages, default_max_tokens=None)
        answer, done = await self._generate(completion, session, (), messages, plan, created=False)
        finished = self._finished(answer, done, exchange_count=0)
        completion.log.append(finished)
        return finished

    async def _turn(self, completion: Completion, session: Session, *, new: bool) -> Finished:
        request = completion.request
        messages = request.messages
        if new:
            session, messages = _adopt_system(session, messages)
        _check_continues(session, request)
        self._sessions.check_room(session, messages)
        history = await self._sessions.window(session)
        plan = context.plan(
            session, history, messages, default_max_tokens=self._engine.window_tokens
        )
        answer, done = await self._generate(
            completion, session, history, messages, plan, created=new
        )
        text = Message(Role.ASSISTANT, "".join(answer.text))
        numbered = context.number(session.exchange_count, [*messages, text])
        after = _after(session, numbered, answer.plan, done.usage, now=self._sessions.now())
        finished = self._finished(answer, done, exchange_count=after.exchange_count)
        receipt = Receipt(
            request_id="",
            digest=b"",
            completion_id=completion.id,
            last_sequence=completion.log.next_sequence,
            finished=finished,
        )
        completion.committing = True
        await self._sessions.commit(Commit(after, numbered, receipt, create=new))
        completion.log.append(finished)
        return finished

    async def _generate(
        self,
        completion: Completion,
        session: Session,
        history: Sequence[Exchange],
        messages: Sequence[Message],
        plan: context.Plan,
        *,
        created: bool,
    ) -> tuple[_Answer, EngineDone]:
        """Generate once the engine has a slot; on a context overflow trim once and try again."""
        options = completion.request.options
        options = replace(options, model=options.model or session.model)
        async with AsyncExitStack() as stack:
            if self._slots:
                await stack.enter_async_context(self._slots)
            await self._engine.ready()
            queued = self._clock.monotonic() - completion.arrived
            answer = completion.answer = _Answer(plan, completion.arrived, queued)
            completion.log.append(
                Started(
                    completion_id=completion.id,
                    session_id=session.id,
                    session_created=created,
                    model=options.model or self._engine.model,
                    context_messages=len(plan.messages),
                    context_trimmed=plan.trimmed,
                )
            )
            try:
                await self._stream(completion, session.id, options, answer)
            except ContextTooLong as overflow:
                shorter = context.shorten(
                    session, history, messages, refused=plan, overflow=overflow
                )
                if shorter is None or answer.text:
                    raise
                answer.plan = shorter
                await self._stream(completion, session.id, options, answer)
        if answer.done is None:
            raise EngineUnavailable("the engine's answer ended before it was complete")
        return answer, answer.done

    async def _stream(
        self, completion: Completion, key: str, options: CompletionOptions, answer: _Answer
    ) -> None:
        request = EngineRequest(answer.plan.messages, options, session_key=key)
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                match chunk:
                    case EngineText(text):
                        if answer.first_text is None:
                            answer.first_text = self._clock.monotonic()
                        answer.text.append(text)
                        completion.log.append_text(text)
                    case EngineDone():
                        answer.done = chunk

    def _finished(self, answer: _Answer, done: EngineDone, *, exchange_count: int) -> Finished:
        return Finished(
            finish_reason=done.finish_reason,
            message=Message(Role.ASSISTANT, "".join(answer.text)),
            usage=done.usage or Usage(),
            timings=self._timings(answer),
            exchange_count=exchange_count,
        )

    def _timings(self, answer: _Answer) -> Timings:
        first = answer.first_text
        return Timings(
            queue_seconds=answer.queue_seconds,
            time_to_first_token_seconds=None if first is None else first - answer.arrived,
            total_seconds=self._clock.monotonic() - answer.arrived,
            prefill_seconds=answer.done.prefill_seconds if answer.done else None,
        )

    def _report(self, completion: Completion) -> None:
        error = completion.error()
        answer = completion.answer
        done = answer.done if answer else None
        if error is None and done:
            reason = done.finish_reason.name
        else:
            reason = error.reason() if isinstance(error, RuvdError) else "INTERNAL"
        waited = self._clock.monotonic() - completion.arrived
        self._observer(
            CompletionEnded(
                completion_id=completion.id,
                session_id=completion.request.session_id,
                model=completion.request.options.model or self._engine.model,
                reason=reason,
                failed=error is not None,
                usage=(done and done.usage) or Usage(),
                timings=self._timings(answer) if answer else Timings(waited, None, waited, None),
                context_messages=len(answer.plan.messages) if answer else 0,
                context_trimmed=answer.plan.trimmed if answer else False,
            )
        )


def _adopt_system(
    session: Session, messages: Sequence[Message]
) -> tuple[Session, Sequence[Message]]:
    """A leading system message is the system prompt of the session that begins with it."""
    if messages and messages[0].role is Role.SYSTEM:
        return replace(session, system_prompt=messages[0].content), messages[1:]
    return session, messages


def _check_continues(session: Session, request: CompletionRequest) -> None:
    """Raises InvalidRequest for a system message or prompt that is not the session's own."""
    wrong = []
    first = request.messages[0] if request.messages else None
    if first and first.role is Role.SYSTEM and first.content != session.system_prompt:
        wrong.append(Violation("messages[0].role", "the session exists and has its system prompt"))
    if request.system_prompt and request.system_prompt != session.system_prompt:
        wrong.append(
            Violation(
                "system_prompt", "differs from the session's; leave it out or end the session"
            )
        )
    if wrong:
        raise InvalidRequest(wrong)


def _after(
    session: Session,
    numbered: Sequence[tuple[int, Message]],
    plan: context.Plan,
    usage: Usage | None,
    *,
    now: float,
) -> Session:
    """The session as it is once the turn is committed."""
    return replace(
        session,
        last_used_time=now,
        message_count=session.message_count + len(numbered),
        exchange_count=numbered[-1][0] + 1,
        size_bytes=session.size_bytes + sum(message.size_bytes for _, message in numbered),
        usage=session.usage + (usage or Usage()),
        window_start=plan.start,
        context_tokens=usage.prompt_tokens + usage.completion_tokens if usage else None,
        context_bytes=plan.size_bytes + numbered[-1][1].size_bytes,
    )
