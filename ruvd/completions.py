"""Completions: their turns, their commits, who reads them, how they end; and the way back.

A completion is a task of its own, so that it outlives the call that began it; the call is one
reader of its event log. Every way to end it early is `Completion.cancel`, which says why, and
which comes too late once the commit has begun: then the turn is as good as finished. Events stay
for a while after the end, bounded in time and bytes, so that a cut stream can be resumed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from ruvd import context, receipts
from ruvd.errors import (
    CompletionCancelled,
    CompletionNotFound,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    RuvdError,
    ShuttingDown,
)
from ruvd.eventlog import EventLog
from ruvd.generation import Answer, Generator, Prompt
from ruvd.lanes import Holder
from ruvd.model import (
    CompletionEvent,
    CompletionOptions,
    Exchange,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Receipt,
    Role,
    Session,
    Usage,
)
from ruvd.ports import Clock, Commit, CompletionEnded, Engine, EngineDone, Observer
from ruvd.sessions import Sessions, grown

# What an ended completion costs beside its events, measured with tracemalloc.
_COMPLETION_BYTES = 3000


@dataclass(frozen=True, slots=True)
class CompletionPolicy:
    """What a deployment decides about completions."""

    max_inflight: int = 1000
    retention_seconds: float = 600.0
    max_log_bytes: int = 1 << 20
    max_logs_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a caller asks for. An empty `session_id` is a stateless completion."""

    messages: Sequence[Message]
    session_id: str = ""
    options: CompletionOptions = CompletionOptions()
    request_id: str = ""
    system_prompt: str = ""
    require_existing: bool = False
    if_busy: IfBusy = IfBusy.QUEUE
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    grace_seconds: float = 0.0

    def digest(self) -> bytes:
        """What must be the same when the request id comes again."""
        return receipts.digest("complete", self.messages, self.options, self.system_prompt)


@dataclass(frozen=True, slots=True)
class CompletionRef:
    """Which completion: its id, or the request id it began with, within its session."""

    completion_id: str = ""
    session_id: str = ""
    request_id: str = ""


class Completion:
    """One generation, running or ended. Made by `Completions.start`."""

    def __init__(self, request: CompletionRequest, arrived: float, max_log_bytes: int) -> None:
        self.id = f"cmpl-{secrets.token_urlsafe(18)}"
        self.session_id = request.session_id
        self.request_id = request.request_id
        self.digest = request.digest() if request.request_id else b""
        self.log = EventLog(max_log_bytes)
        self.answer = Answer(arrived)
        self.replayed = False
        self.committing = False
        self.keep_partial = False
        self.ended_at: float | None = None
        self.error: BaseException | None = None
        self._on_disconnect = request.on_disconnect
        self._grace_seconds = request.grace_seconds
        self._grace: asyncio.TimerHandle | None = None
        self._reason: RuvdError | None = None
        self._readers = 0
        self._task: asyncio.Task[None] | None = None

    def run(self, task: asyncio.Task[None]) -> None:
        """Take the task that generates; the log closes with it."""
        self._task = task
        task.add_done_callback(self._ended)

    def cancel(self, reason: RuvdError, *, keep_partial: bool = False) -> None:
        """Stop, with `reason` for the readers; too late once the commit has begun."""
        if self._task and not self.committing and not self._reason:
            self._reason = reason
            self.keep_partial = keep_partial
            self._task.cancel()

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled, though it may not have ended yet."""
        return self._reason is not None

    async def ended(self) -> None:
        """Return when the completion has ended, however."""
        if self._task:
            await asyncio.wait([self._task])

    async def events(self, after: int = 0) -> AsyncGenerator[CompletionEvent, None]:
        """The events above `after`; raises what the completion failed with.

        Close it (`aclosing`) when the reader leaves: with the last reader the completion is
        cancelled, after its grace, unless it is to continue.
        """
        self._readers += 1
        if self._grace:
            self._grace.cancel()
        try:
            async with aclosing(self.log.read(after)) as events:
                async for event in events:
                    yield event
        finally:
            self._readers -= 1
            if not self._readers and self._task:
                self._abandoned()

    def _abandoned(self) -> None:
        """The last reader has gone."""
        if self._on_disconnect is OnDisconnect.CONTINUE:
            return
        if self._grace_seconds and self.log.last_sequence:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._grace_seconds, self._grace_over)
        else:
            self.cancel(CompletionCancelled("the caller has gone"))

    def _grace_over(self) -> None:
        if not self._readers:
            self.cancel(CompletionCancelled("the caller has gone and did not come back"))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._grace:
            self._grace.cancel()
        if task.cancelled():
            self.error = self._reason or CompletionCancelled("the daemon stopped")
        elif failure := task.exception():
            self.error = self._reason or failure
        self.log.close(self.error)


class Completions:
    """Starts completions, and knows those that run and those that ended a while ago."""

    def __init__(
        self,
        sessions: Sessions,
        engine: Engine,
        clock: Clock,
        observer: Observer,
        policy: CompletionPolicy = CompletionPolicy(),  # frozen
    ) -> None:
        self._sessions = sessions
        self._generator = Generator(engine, clock)
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

    def start(self, request: CompletionRequest) -> Completion:
        """Begin a completion, in the order of the calls, or attach to that of the request id.

        Raises RequestIdReused, Overloaded, and ShuttingDown while draining.
        """
        self._expire()
        key = (request.session_id, request.request_id)
        known = self._by_request.get(key) if request.request_id else None
        if known and not known.stopping:
            receipts.check(known.digest, request.digest(), request.request_id)
            return known
        if self._draining:
            raise ShuttingDown("the daemon is shutting down; call the next one")
        if len(self._running) >= self._policy.max_inflight:
            raise Overloaded(
                f"{self._policy.max_inflight} completions run or wait (max_inflight); try again"
            )
        completion = Completion(request, self._clock.monotonic(), self._policy.max_log_bytes)
        self._running[completion.id] = completion
        if request.request_id:
            self._by_request[key] = completion
        running = self._run(completion, request, known)
        task = asyncio.create_task(running, name=completion.id)
        completion.run(task)
        task.add_done_callback(lambda _: self._retire(completion, request.options))
        return completion

    async def resume(self, ref: CompletionRef, after: int) -> AsyncGenerator[CompletionEvent, None]:
        """The events above `after`, as they come. Raises CompletionNotFound."""
        completion = self._find(ref)
        if completion is None:
            receipt = await self._receipt(ref)
            completion = self._ended.get(receipt.completion_id)
            if completion is None:
                if receipt.finished and after < receipt.last_sequence:
                    yield CompletionEvent(receipt.last_sequence, receipt.finished)
                return
        async with aclosing(completion.events(after)) as events:
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

    # --- one completion ---------------------------------------------------------------------

    async def _run(
        self, completion: Completion, request: CompletionRequest, before: Completion | None
    ) -> None:
        if before:  # of the same request id and being cancelled: it may yet commit a part
            await before.ended()
        if not request.session_id:
            session = Session("", 0.0, 0.0, 0.0, system_prompt=request.system_prompt)
            session, messages = _adopt_system(session, request.messages)
            prompt = Prompt(completion.id, session, (), messages, request.options)
            answer = completion.answer
            done = await self._generator.generate(prompt, completion.log, answer)
            now = self._clock.monotonic()
            completion.log.append(answer.finished(done, now, exchange_count=0))
            return
        if request.request_id and await self._replay(completion, request):
            return
        holder = Holder(completion.id, completion.cancel)
        async with self._sessions.lanes.turn(request.session_id, holder, request.if_busy):
            # An AppendMessages that this waited for may have used the request id.
            if request.request_id and holder.turn and await self._replay(completion, request):
                return
            session = await self._sessions.begin(
                request.session_id,
                holder,
                request.system_prompt,
                require_existing=request.require_existing,
            )
            try:
                await self._turn(completion, request, session, creates=holder.newcomer is not None)
            finally:
                if not completion.committing and holder.newcomer is None:
                    await self._sessions.touch(session.id)

    async def _replay(self, completion: Completion, request: CompletionRequest) -> bool:
        """Give a committed request its events again, or its Finished; False if there is none."""
        receipt = await self._sessions.receipt(request.session_id, request.request_id)
        if receipt is None:
            return False
        receipts.check(receipt.digest, completion.digest, request.request_id)
        completion.replayed = True
        kept = self._ended.get(receipt.completion_id)
        if kept:
            completion.log.adopt(kept.log)
        elif receipt.finished:
            completion.log.append(receipt.finished, receipt.last_sequence)
        return True

    async def _turn(
        self, completion: Completion, request: CompletionRequest, session: Session, *, creates: bool
    ) -> None:
        messages = request.messages
        if creates:
            session, messages = _adopt_system(session, messages)
        _check_continues(session, request)
        self._sessions.check_room(session, messages)
        history = await self._sessions.window(session)
        if messages:
            prompt = Prompt(completion.id, session, history, messages, request.options, creates)
        else:
            history, open_turn = _open_turn(history)
            prompt = Prompt(completion.id, session, history, open_turn, request.options)
        answer = completion.answer
        try:
            done = await self._generator.generate(prompt, completion.log, answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not (completion.keep_partial and answer.text and task):
                raise
            task.uncancel()
            done = EngineDone(FinishReason.CANCELLED)
        completion.committing = True
        numbered = context.number(session.exchange_count, [*messages, answer.message])
        after = _after(session, numbered, answer, done.usage, now=self._sessions.now())
        now = self._clock.monotonic()
        finished = answer.finished(done, now, exchange_count=after.exchange_count)
        receipt = Receipt(
            request_id=request.request_id,
            digest=completion.digest,
            completion_id=completion.id,
            last_sequence=completion.log.last_sequence + 1,
            finished=finished,
        )
        await self._sessions.commit(Commit(after, numbered, receipt, create=creates))
        completion.log.append(finished)

    # --- the ended --------------------------------------------------------------------------

    def _find(self, ref: CompletionRef) -> Completion | None:
        if ref.completion_id:
            return self._running.get(ref.completion_id) or self._ended.get(ref.completion_id)
        return self._by_request.get((ref.session_id, ref.request_id))

    async def _receipt(self, ref: CompletionRef) -> Receipt:
        if ref.completion_id:
            receipt = await self._sessions.completion(ref.completion_id)
        else:
            receipt = await self._sessions.receipt(ref.session_id, ref.request_id)
        if receipt is None or not receipt.completion_id:
            raise CompletionNotFound(
                "there is no such completion: it was not committed, and its events are gone; "
                "call Complete again"
            )
        return receipt

    def _retire(self, completion: Completion, options: CompletionOptions) -> None:
        """Report a completion that ended, and keep its events for a while."""
        del self._running[completion.id]
        # In a session the store answers from now on; a failed request id is free again.
        if completion.session_id or completion.error:
            self._release(completion)
        if completion.replayed:
            return
        self._report(completion, options)
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

    def _report(self, completion: Completion, options: CompletionOptions) -> None:
        error, answer = completion.error, completion.answer
        reason = answer.done.finish_reason if answer.done else FinishReason.CANCELLED
        name = reason.name
        if error is not None:
            name = error.reason() if isinstance(error, RuvdError) else "INTERNAL"
        self._observer(
            CompletionEnded(
                completion_id=completion.id,
                session_id=completion.session_id,
                model=self._generator.model(options),
                reason=name,
                failed=error is not None,
                usage=answer.done.usage if answer.done else None,
                timings=answer.timings(self._clock.monotonic()),
                context_messages=len(answer.plan.messages) if answer.plan else 0,
                context_trimmed=answer.plan.trimmed if answer.plan else False,
            )
        )
        completion.answer = Answer(answer.arrived)  # the events have the text


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
        text = "the session exists and has its system prompt"
        wrong.append(FieldViolation("messages[0].role", text))
    if request.system_prompt and request.system_prompt != session.system_prompt:
        text = "differs from the session's; leave it out or end the session"
        wrong.append(FieldViolation("system_prompt", text))
    if wrong:
        raise InvalidRequest(wrong)


def _open_turn(history: Sequence[Exchange]) -> tuple[Sequence[Exchange], Exchange]:
    """The history and the exchange at its end that waits for an answer."""
    if not history or history[-1][-1].role not in (Role.USER, Role.TOOL):
        text = "must not be empty: the session's history has nothing to answer"
        raise InvalidRequest([FieldViolation("messages", text)])
    return history[:-1], history[-1]


def _after(
    session: Session,
    numbered: Sequence[tuple[int, Message]],
    answer: Answer,
    usage: Usage | None,
    *,
    now: float,
) -> Session:
    """The session as it is once the turn is committed."""
    plan = answer.plan
    return replace(
        grown(session, numbered),
        last_used_time=now,
        usage=session.usage + (usage or Usage()),
        window_start=plan.start if plan else session.window_start,
        context_tokens=usage.prompt_tokens + usage.completion_tokens if usage else None,
        context_bytes=(plan.size_bytes if plan else 0) + numbered[-1][1].size_bytes,
    )
