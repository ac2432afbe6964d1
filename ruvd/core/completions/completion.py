"""One completion: what was asked, its events, its readers, its end.

It is a task of its own, so that it outlives the call that began it; the call is one reader of its
event log. Every way to end it early is `Completion.cancel`, which says why, and which comes too
late once the commit has begun: then the turn is as good as finished.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

from ruvd.core.completions.event_log import EventLog
from ruvd.core.completions.generation import Answer
from ruvd.core.errors import CompletionCancelled, RuvdError, forget_frames
from ruvd.core.ids import unguessable
from ruvd.core.model import CompletionEvent, FinishReason, IfBusy, Message, OnDisconnect
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.events import CompletionEnded
from ruvd.core.sessions import idempotency
from ruvd.core.values import dataclass

_log = logging.getLogger("ruvd.completion")


@dataclass(frozen=True, slots=True)
class CompletionPolicy:
    """What a deployment decides about completions."""

    max_inflight: int = 1000
    retention_seconds: float = 600.0
    max_log_bytes: int = 1 << 20
    max_logs_bytes: int = 16 << 20
    batch_share: float = 0.5


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a caller asks for. An empty `session_id` is a stateless completion.

    An item of a `batch` generates in the batches' share of the engine; items with the same
    `prefix_key` have prompts that begin alike.
    """

    messages: Sequence[Message]
    session_id: str = ""
    options: CompletionOptions = CompletionOptions()
    request_id: str = ""
    system_prompt: str = ""
    require_existing: bool = False
    if_busy: IfBusy = IfBusy.QUEUE
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    grace_seconds: float = 0.0
    batch: bool = False
    prefix_key: str = ""

    def digest(self) -> bytes:
        """What must be the same when the request id comes again."""
        return idempotency.digest("complete", self.messages, self.options, self.system_prompt)


@dataclass(frozen=True, slots=True)
class CompletionRef:
    """Which completion: its id, or the request id it began with, within its session."""

    completion_id: str = ""
    session_id: str = ""
    request_id: str = ""


class Completion:
    """One generation, running or ended. Made by `Completions.start`."""

    def __init__(self, request: CompletionRequest, arrived: float, max_log_bytes: int) -> None:
        self.id = f"cmpl-{unguessable()}"
        self.session_id = request.session_id
        self.request_id = request.request_id
        self._batch = request.batch
        self.digest = request.digest() if request.request_id else b""
        self.log = EventLog(max_log_bytes)
        self.answer = Answer(arrived)
        self.replayed = ""  # the completion whose events it gives again
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

    async def events(
        self, after: int = 0, *, is_out_of_time: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[CompletionEvent, None]:
        """The events above `after`; raises what the completion failed with.

        Close it (`aclosing`) when the reader leaves: with the last reader the completion is
        cancelled, after its grace, unless it is to continue. Without a grace if it leaves because
        it `is_out_of_time`: then nobody means to come back.
        """
        self._readers += 1
        if self._grace:
            self._grace.cancel()
        try:
            while event := await self.log.next(after):
                after = event.sequence
                yield event
        finally:
            self._readers -= 1
            if not self._readers and self._task:
                self._abandoned(for_good=is_out_of_time())

    def _abandoned(self, *, for_good: bool) -> None:
        """The last reader has gone."""
        if self._on_disconnect is OnDisconnect.CONTINUE:
            return
        if for_good:
            self.cancel(CompletionCancelled("the caller's deadline has passed"))
        elif self._grace_seconds and self.log.last_sequence:
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
        if self.error is not None:
            if not isinstance(self.error, RuvdError):  # a bug, and perhaps nobody reads
                _log.error("completion %s failed", self.id, exc_info=self.error)
            forget_frames(self.error)
        self.log.close(self.error)

    def report(self, model: str, now: float) -> CompletionEnded:
        """What came of it, once it has ended; the answer is let go, the events have it.

        `model` is what would have answered, for a completion that never had the engine.
        """
        error, answer = self.error, self.answer
        reason = (answer.done.finish_reason if answer.done else FinishReason.CANCELLED).name
        if error is not None:
            reason = error.reason() if isinstance(error, RuvdError) else "INTERNAL"
        self.answer = Answer(answer.arrived)
        return CompletionEnded(
            completion_id=self.id,
            session_id=self.session_id,
            batch=self._batch,
            model=answer.model or model,
            reason=reason,
            failed=error is not None,
            usage=answer.done.usage if answer.done else None,
            timings=answer.timings(now),
            context_messages=len(answer.plan.messages) if answer.plan else 0,
            context_trimmed=answer.plan.trimmed if answer.plan else False,
        )
