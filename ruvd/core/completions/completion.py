"""One completion: its request, its events, its readers and its end.

A completion runs in a task of its own, so that it outlives the call that began it; the call is one
reader of its event log. Every early end goes through `Completion.cancel`, which takes the reason.
A cancel has no effect once the commit has begun, because the turn is as good as finished then.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

from ruvd.core import ids, tenants
from ruvd.core.completions.answer import Answer
from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import CompletionCancelled, RuvdError, forget_frames
from ruvd.core.model import CompletionEvent, FinishReason, IfBusy, Message, OnDisconnect
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock, Timer
from ruvd.core.ports.events import CompletionEnded
from ruvd.core.sessions import idempotency
from ruvd.core.values import value

_log = logging.getLogger("ruvd.completion")


@value(frozen=True, slots=True)
class CompletionPolicy:
    """The settings of a deployment that concern completions.

    The ids of completions name the `replica`, if it is not empty.
    """

    max_inflight: int = 1000
    retention_seconds: float = 600.0
    max_log_bytes: int = 1 << 20
    max_logs_bytes: int = 16 << 20
    max_answer_bytes: int = 8 << 20
    batch_share: float = 0.5
    replica: str = ""


@value(frozen=True, slots=True)
class CompletionRequest:
    """A caller's request. With an empty `session_id` it is stateless.

    The items of a `batch` generate in the batches' share of the engine; items with the same
    `prefix_key` have prompts that begin alike. One that `may_move` fails with SessionElsewhere
    while another replica has the session, so that it can be called there.
    """

    messages: Sequence[Message]
    session_id: str = ""
    options: CompletionOptions = CompletionOptions()
    request_id: str = ""
    system_prompt: str = ""
    require_existing: bool = False
    recreate_if_gone: bool = False
    if_busy: IfBusy = IfBusy.QUEUE
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    grace_seconds: float = 0.0
    batch: bool = False
    prefix_key: str = ""
    tenant: str = tenants.DEFAULT
    may_move: bool = False

    def digest(self) -> bytes:
        """Returns the digest that must be the same when the request id is repeated."""
        return idempotency.digest("complete", self.messages, self.options, self.system_prompt)


@value(frozen=True, slots=True)
class CompletionRef:
    """A reference to a completion: its id, or its session and request id."""

    completion_id: str = ""
    session_id: str = ""
    request_id: str = ""


class Completion:
    """One generation, running or ended. `CompletionRegistry.start` makes it."""

    def __init__(
        self, request: CompletionRequest, clock: Clock, max_log_bytes: int, replica: str = ""
    ) -> None:
        self.id = tenants.scoped(request.tenant, ids.of_completion(replica))
        self.session_id = request.session_id
        self.request_id = request.request_id
        self.batch = request.batch
        self.digest = request.digest() if request.request_id else b""
        self.log = EventLog(max_log_bytes)
        self.answer = Answer(clock.monotonic())
        self._clock = clock
        self.replayed = ""  # the id of the completion whose events this one repeats
        self.committing = False
        self.keep_partial = False
        self.ended_at: float | None = None
        self.kept_bytes = 0  # of its events, once it has ended
        self.error: BaseException | None = None
        self._on_disconnect = request.on_disconnect
        self._grace_seconds = request.grace_seconds
        self._grace: Timer | None = None
        self._reason: RuvdError | None = None
        self._task: asyncio.Task[None] | None = None

    def run(self, task: asyncio.Task[None]) -> None:
        """Takes over the task that generates. The log closes when the task ends."""
        self._task = task
        task.add_done_callback(self._on_end)

    def cancel(self, reason: RuvdError, *, keep_partial: bool = False) -> None:
        """Stops a completion that has neither ended nor begun to commit. Readers get `reason`."""
        if self._task and self.can_be_cancelled:
            self._reason = reason
            self.keep_partial = keep_partial
            self._task.cancel()

    @property
    def can_be_cancelled(self) -> bool:
        """Whether a cancel would have an effect."""
        is_running = self._task is not None and not self._task.done()
        return is_running and not self.committing and self._reason is None

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled. It may still be running."""
        return self._reason is not None

    async def ended(self) -> None:
        """Returns when the completion has ended, with success or not."""
        if self._task:
            await asyncio.wait([self._task])

    async def events(
        self, after: int = 0, *, is_out_of_time: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[CompletionEvent, None]:
        """Yields the events above `after`, then raises the error of a failed completion.

        The reader must close the generator (`aclosing`) when it leaves. When the last reader
        leaves, the completion is cancelled after its grace period, unless it is to continue. There
        is no grace period for a reader that `is_out_of_time`, because it will not come back.
        """
        self.log.attach()
        if self._grace:
            self._grace.cancel()
        try:
            while event := await self.log.next(after):
                after = event.sequence
                yield event
        finally:
            self.log.detach()
            if not self.log.readers and self._task:
                self._on_last_reader_gone(for_good=is_out_of_time())

    def _on_last_reader_gone(self, *, for_good: bool) -> None:
        if self._on_disconnect is OnDisconnect.CONTINUE:
            return
        if for_good:
            self.cancel(CompletionCancelled("the caller's deadline has passed"))
        elif self._grace_seconds and self.log.last_sequence:
            self._grace = self._clock.call_later(self._grace_seconds, self._on_grace_over)
        else:
            self.cancel(CompletionCancelled("the caller has gone"))

    def _on_grace_over(self) -> None:
        if not self.log.readers:
            self.cancel(CompletionCancelled("the caller has gone and did not come back"))

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._grace:
            self._grace.cancel()
        if task.cancelled():
            self.error = self._reason or CompletionCancelled("the daemon stopped")
        elif failure := task.exception():
            self.error = self._reason or failure
        if self.error is not None:
            if not isinstance(self.error, RuvdError):  # a bug, which perhaps no reader sees
                _log.error("completion %s failed", self.id, exc_info=self.error)
            forget_frames(self.error)
        self.log.close(self.error)

    def report(self, model: str, now: float) -> CompletionEnded:
        """Returns the event that reports the end, and frees the answer, which the log has too.

        `model` is the model that was asked for, for a completion that never got a slot.
        """
        error, answer = self.error, self.answer
        reason = (answer.done.finish_reason if answer.done else FinishReason.CANCELLED).name
        if error is not None:
            reason = error.reason() if isinstance(error, RuvdError) else "INTERNAL"
        self.answer = Answer(answer.arrived)
        return CompletionEnded(
            completion_id=self.id,
            session_id=self.session_id,
            batch=self.batch,
            model=answer.model or model,
            reason=reason,
            failed=error is not None,
            usage=answer.done.usage if answer.done else None,
            timings=answer.timings(now),
            context_messages=len(answer.plan.messages) if answer.plan else 0,
            context_trimmed=answer.plan.trimmed if answer.plan else False,
            engine=answer.engine,
        )
