"""A turn: begin in order, generate, commit. What a completion's task does.

The new messages and the answer are committed together, once, before `Finished` is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from ruvd.core.completions.completion import Completion, CompletionRequest
from ruvd.core.completions.event_log import EventLog
from ruvd.core.completions.generation import Answer, AnswerGenerator, Prompt
from ruvd.core.errors import FieldViolation, InvalidRequest
from ruvd.core.model import (
    Exchange,
    FinishReason,
    IdempotencyRecord,
    IfBusy,
    Message,
    Role,
    Session,
    Usage,
)
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import EngineDone
from ruvd.core.ports.store import Commit, TurnSnapshot
from ruvd.core.sessions import idempotency, window
from ruvd.core.sessions.registry import SessionRegistry, session_not_found, with_messages
from ruvd.core.sessions.tool_results import check_results
from ruvd.core.sessions.turn_queue import TurnRequest


class TurnRunner:
    """Runs completions. `kept` finds the event log of one that has ended, if it is kept;
    `turned` is told of each session whose turn was committed."""

    def __init__(
        self,
        sessions: SessionRegistry,
        generator: AnswerGenerator,
        clock: Clock,
        kept: Callable[[str], EventLog | None],
        turned: Callable[[Session, CompletionOptions], None],
    ) -> None:
        self._sessions = sessions
        self._generator = generator
        self._clock = clock
        self._kept = kept
        self._turned = turned

    async def run(
        self, completion: Completion, request: CompletionRequest, before: Completion | None
    ) -> None:
        """Generate and commit; what goes wrong is raised. `before` is to end first."""
        if before:  # of the same request id and being cancelled: it may yet commit a part
            await before.ended()
        if not request.session_id:
            session = Session("", 0.0, 0.0, 0.0, system_prompt=request.system_prompt)
            session, messages = _adopt_system(session, request.messages)
            check_results((), request.messages)
            prompt = _prompt(completion, request, session, (), messages)
            answer = completion.answer
            done = await self._generator.generate(prompt, completion.log, answer)
            now = self._clock.monotonic()
            completion.log.append(answer.finished(done, now, exchange_count=0))
            return
        turn_request = TurnRequest(completion.id, completion.cancel)
        turn_queue, session_id = self._sessions.turn_queue, request.session_id
        if request.if_busy is not IfBusy.QUEUE:
            # A request id goes before if_busy, and whoever takes over must be able to go on.
            if await self._replay(completion, request):
                return
            if request.if_busy is IfBusy.INTERRUPT:
                await self._check_fits(request)
        turn_queue.join(session_id, turn_request, request.if_busy)
        try:
            # Nobody waits for what is known. In the lane already, so that the look-up costs
            # nobody its place; and `begin` looks again, because what this waited for may have used
            # the request id.
            if turn_request.turn and await self._replay(completion, request):
                return
            await turn_queue.wait(turn_request)
            begun = await self._sessions.begin_turn(
                request.session_id,
                turn_request,
                request.system_prompt,
                request_id=request.request_id,
                require_existing=request.require_existing,
            )
            if begun.idempotency_record:
                self._give_again(completion, request, begun.idempotency_record)
                return
            creates, is_done = turn_request.pending_session is not None, False
            try:
                await self._turn(completion, request, begun, creates=creates)
                is_done = True
            finally:
                if creates and not is_done:
                    self._sessions.creation_aborted(session_id)
                elif not completion.committing:
                    await self._sessions.touch(session_id)
        finally:
            turn_queue.leave(session_id, turn_request)

    async def _replay(self, completion: Completion, request: CompletionRequest) -> bool:
        """Give a committed request its events again, or its Finished; False if there is none."""
        if not request.request_id:
            return False
        idempotency_record = await self._sessions.idempotency_record(
            request.session_id, request.request_id
        )
        if idempotency_record is None:
            return False
        self._give_again(completion, request, idempotency_record)
        return True

    def _give_again(
        self,
        completion: Completion,
        request: CompletionRequest,
        idempotency_record: IdempotencyRecord,
    ) -> None:
        """Raises RequestIdReused if it was another request."""
        idempotency.check(idempotency_record.digest, completion.digest, request.request_id)
        completion.replayed = idempotency_record.completion_id
        kept = self._kept(idempotency_record.completion_id)
        if kept:
            completion.log.adopt(kept)
        elif idempotency_record.finished:
            completion.log.append(idempotency_record.finished, idempotency_record.last_sequence)

    async def _check_fits(self, request: CompletionRequest) -> None:
        """Raises what the turn would raise, before it costs somebody else theirs."""
        session = await self._sessions.current(request.session_id)
        if session:
            _check_continues(session, request)
            self._sessions.check_room(session, request.messages)
            history = await self._sessions.window(session)
            check_results(history[-1] if history else (), request.messages)

    async def _turn(
        self,
        completion: Completion,
        request: CompletionRequest,
        begun: TurnSnapshot,
        *,
        creates: bool,
    ) -> None:
        session, history = begun.session, begun.exchanges
        if session is None:
            raise session_not_found(request.session_id)
        if not creates:
            _check_continues(session, request)
        session, messages = _adopt_system(session, request.messages)
        self._sessions.check_room(session, messages)
        if history is None:
            history = await self._sessions.window(session)
        check_results(history[-1] if history else (), request.messages)
        turn = messages
        if not messages:
            _check_open(history)
        if not messages or messages[0].role is Role.TOOL:
            # The exchange goes on, so it is sent whatever is trimmed.
            history, turn = history[:-1], (*history[-1], *messages)
        prompt = _prompt(completion, request, session, history, turn, creates=creates)
        answer = completion.answer
        try:
            done = await self._generator.generate(prompt, completion.log, answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not (completion.keep_partial and answer.text and task):
                raise
            answer.tool_calls.clear()  # half a call cannot be answered
            task.uncancel()
            done = EngineDone(FinishReason.CANCELLED)
        completion.committing = True
        numbered = window.number(session.exchange_count, [*messages, answer.message])
        after = _after(session, numbered, answer, done.usage, now=self._clock.now())
        now = self._clock.monotonic()
        finished = answer.finished(done, now, exchange_count=after.exchange_count)
        idempotency_record = IdempotencyRecord(
            request_id=request.request_id,
            digest=completion.digest,
            completion_id=completion.id,
            last_sequence=completion.log.last_sequence + 1,
            finished=finished,
        )
        # `committing` keeps everyone from cancelling this task.
        await self._sessions.write(Commit(after, numbered, idempotency_record, create=creates))
        completion.log.append(finished)
        self._turned(after, request.options)


def _prompt(
    completion: Completion,
    request: CompletionRequest,
    session: Session,
    history: Sequence[Exchange],
    messages: Sequence[Message],
    *,
    creates: bool = False,
) -> Prompt:
    return Prompt(
        completion.id,
        session,
        history,
        messages,
        request.options,
        creates=creates,
        batch=request.batch,
        prefix_key=request.prefix_key,
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
        text = "the session exists and has its system prompt"
        wrong.append(FieldViolation("messages[0].role", text))
    if request.system_prompt and request.system_prompt != session.system_prompt:
        text = "differs from the session's; leave it out or end the session"
        wrong.append(FieldViolation("system_prompt", text))
    if wrong:
        raise InvalidRequest(wrong)


def _check_open(history: Sequence[Exchange]) -> None:
    """Raises InvalidRequest if the history does not end with what waits for an answer."""
    if not history or history[-1][-1].role not in (Role.USER, Role.TOOL):
        text = "must not be empty: the session's history has nothing to answer"
        raise InvalidRequest([FieldViolation("messages", text)])


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
    return with_messages(
        session,
        numbered,
        last_used_time=now,
        usage=session.usage + (usage or Usage()),
        window_start=plan.start if plan else session.window_start,
        context_tokens=usage.prompt_tokens + usage.completion_tokens if usage else None,
        context_bytes=(plan.size_bytes if plan else 0) + numbered[-1][1].size_bytes,
    )
