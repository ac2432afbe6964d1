"""The work of a completion's task: wait for the turn, generate, commit.

The new messages and the answer are committed together, once, before `Finished` is in the log.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from ruvd.core.completions.answer import Answer
from ruvd.core.completions.completion import Completion, CompletionRequest
from ruvd.core.completions.generation import AnswerGenerator, Prompt
from ruvd.core.errors import FieldViolation, InvalidRequest, StoreUnavailable
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
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import EngineDone
from ruvd.core.ports.events import CompletionCommitted, Observer
from ruvd.core.ports.store import Commit, TurnSnapshot
from ruvd.core.sessions import idempotency, pins, window
from ruvd.core.sessions.absence import session_not_found
from ruvd.core.sessions.model import with_messages
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.tool_results import check_results
from ruvd.core.sessions.turn_queue import TurnRequest


class TurnRunner:
    """Runs the turns of completions, and tells the observer of each commit."""

    def __init__(
        self,
        sessions: SessionRegistry,
        generator: AnswerGenerator,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._sessions = sessions
        self._generator = generator
        self._clock = clock
        self._observer = observer

    async def run(
        self, completion: Completion, request: CompletionRequest, before: Completion | None
    ) -> IdempotencyRecord | None:
        """Generates and commits, after the completion `before`, which has the same request id.

        Returns None, or the record of an earlier commit with the same request id, for which
        nothing is generated. Raises the errors that the completion fails with.
        """
        if before:  # it is being cancelled, but may still commit a part of its answer
            await before.ended()
        if not request.session_id:
            await self._run_stateless(completion, request)
            return None
        turn_request = TurnRequest(completion.id, completion.cancel)
        turn_queue, session_id = self._sessions.turn_queue, request.session_id
        if request.if_busy is not IfBusy.QUEUE:
            # The request id is looked up before if_busy applies, and a request that interrupts
            # another one must itself be able to continue the session.
            if record := await self._committed(completion, request):
                return record
            if request.if_busy is IfBusy.INTERRUPT:
                await self._check_fits(request)
        turn_queue.join(session_id, turn_request, request.if_busy)
        try:
            # A repeated request need not wait for the turn. The look-up comes after `join`, so that
            # it does not cost the request its place. `begin_turn` looks again, because one of the
            # requests before this one may have used the request id.
            if turn_request.turn and (record := await self._committed(completion, request)):
                return record
            await turn_queue.wait(turn_request)
            snapshot = await self._sessions.turns.begin(
                request.session_id,
                turn_request,
                request.system_prompt,
                request_id=request.request_id,
                require_existing=request.require_existing,
                if_busy=request.if_busy,
                recreate_if_gone=request.recreate_if_gone,
                may_move=request.may_move,
            )
            if record := snapshot.idempotency_record:
                idempotency.check(record.digest, completion.digest, request.request_id)
                return record
            creates, is_committed = turn_request.pending_session is not None, False
            try:
                await self._turn(completion, request, snapshot, creates=creates)
                is_committed = True
            finally:
                if creates and not is_committed:
                    await self._sessions.turns.creation_aborted(session_id)
                elif not completion.committing:
                    # The turn's own error is what the caller must see; the store reports its own.
                    with contextlib.suppress(StoreUnavailable):
                        await self._sessions.touch(session_id)
        finally:
            turn_queue.leave(session_id, turn_request)
        return None

    async def _run_stateless(self, completion: Completion, request: CompletionRequest) -> None:
        session = Session("", 0.0, 0.0, 0.0, system_prompt=request.system_prompt)
        session, messages = _adopt_system(session, request.messages)
        check_results((), request.messages)
        prompt = _prompt(completion, request, session, (), messages)
        answer = completion.answer
        done = await self._generator.generate(prompt, completion.log, answer)
        now = self._clock.monotonic()
        completion.log.append(answer.finished(done, now, exchange_count=0))

    async def _committed(
        self, completion: Completion, request: CompletionRequest
    ) -> IdempotencyRecord | None:
        """Returns the record of an earlier commit with the same request id.

        Raises RequestIdReused if that was another request.
        """
        if not request.request_id:
            return None
        record = await self._sessions.idempotency_record(request.session_id, request.request_id)
        if record:
            idempotency.check(record.digest, completion.digest, request.request_id)
        return record

    async def _check_fits(self, request: CompletionRequest) -> None:
        """Raises the errors that the turn would raise, before it interrupts another turn."""
        session = await self._sessions.check_may_begin(
            request.session_id,
            require_existing=request.require_existing,
            recreate_if_gone=request.recreate_if_gone,
        )
        if session:
            _check_continues(session, request)
            self._sessions.quotas.check_size(session, request.messages)
            history = await self._sessions.window(session)
            check_results(history[-1] if history else (), request.messages)
            pins.check_pinned(session, history, request.messages)
            await self._sessions.quotas.reserve(session, request.messages, creates=False)

    async def _turn(
        self,
        completion: Completion,
        request: CompletionRequest,
        snapshot: TurnSnapshot,
        *,
        creates: bool,
    ) -> None:
        session, history = snapshot.session, snapshot.exchanges
        if session is None:
            raise session_not_found(request.session_id)
        if not creates:
            _check_continues(session, request)
        session, messages = _adopt_system(session, request.messages)
        self._sessions.quotas.check_size(session, messages)
        if history is None:
            history = await self._sessions.window(session)
        check_results(history[-1] if history else (), request.messages)
        pins.check_pinned(session, history, messages)
        pinned = await self._sessions.reads.pinned(session) if session.pinned else ()
        turn, stored = messages, 0
        if not messages:
            _check_open(history)
        if not messages or messages[0].role is Role.TOOL:
            # The messages continue the last exchange, so it is sent whatever is trimmed.
            stored = len(history[-1])
            history, turn = history[:-1], (*history[-1], *messages)
        prompt = _prompt(completion, request, session, history, turn, creates=creates)
        if pinned or stored:
            prompt = replace(prompt, pinned=pinned, stored=stored)
        # Until the commit the messages have room with their tenant's bytes.
        with await self._sessions.quotas.reserve(session, messages, creates=creates):
            await self._answer(completion, request, prompt, messages)

    async def _answer(
        self,
        completion: Completion,
        request: CompletionRequest,
        prompt: Prompt,
        messages: Sequence[Message],
    ) -> None:
        """Generates the answer to the prompt, and commits it with the new messages."""
        session, answer = prompt.session, completion.answer
        try:
            done = await self._generator.generate(prompt, completion.log, answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not (completion.keep_partial and answer.text and task):
                raise
            answer.tool_calls.clear()  # an incomplete call cannot be answered
            task.uncancel()
            done = EngineDone(FinishReason.CANCELLED)
        completion.committing = True
        numbered = window.number(session.exchange_count, [*messages, answer.message])
        time, now = self._clock.now(), self._clock.monotonic()
        after = _after(session, numbered, answer, done.usage, now=time)
        finished = answer.finished(done, now, exchange_count=after.exchange_count, time=time)
        record = IdempotencyRecord(
            request_id=request.request_id,
            digest=completion.digest,
            completion_id=completion.id,
            last_sequence=completion.log.last_sequence + 1,
            finished=finished,
        )
        # While `committing` is set nothing cancels this task.
        await self._sessions.write(Commit(after, numbered, record, create=prompt.creates))
        completion.log.append(finished)
        self._observer(CompletionCommitted(after, request.options))


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
    """Makes a leading system message the session's system prompt."""
    if messages and messages[0].role is Role.SYSTEM:
        return replace(session, system_prompt=messages[0].content), messages[1:]
    return session, messages


def _check_continues(session: Session, request: CompletionRequest) -> None:
    """Raises InvalidRequest for a system message or prompt other than the session's own."""
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
    """Raises InvalidRequest unless the history ends with a message that needs an answer."""
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
    """Returns the session as it is once the turn is committed."""
    plan = answer.plan
    return with_messages(
        session,
        numbered,
        last_used_time=now,
        usage=session.usage + (usage or Usage()),
        window_start=plan.start if plan else session.window_start,
        pinned=plan.pinned if plan else session.pinned,
        context_tokens=usage.prompt_tokens + usage.completion_tokens if usage else None,
        context_bytes=(plan.size_bytes if plan else 0) + numbered[-1][1].size_bytes,
    )
