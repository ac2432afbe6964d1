"""A batch as the calls that it takes: their sizes, what was cut, and what came of it.

Pure but for the clock; `ruvd_client.batches` does the I/O. Every item has a request id, its own or
one that is made here, so an item that is repeated after a cut is not generated twice: over a
restart of the daemon if it has a session, otherwise while the daemon runs and within its
`completion_retention`.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from ruvd_client.protocol import (
    RuvdError,
    error_from_status,
    request,
    to_seconds,
)
from ruvd_client.v1 import session_service_pb2 as pb

BatchItem: TypeAlias = pb.CompleteRequest | str

# Below the daemon's default max_request_bytes of 4 MiB.
MAX_CALL_BYTES = 3 << 20
RECONNECT_SECONDS = 60.0
_MAX_ITEMS = 10_000
_ITEM_BYTES = 8  # what an item costs in a call beside itself, at most
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What came of the item `index`, from 0 on: `completion`, or `error`.

    `request` is the item as it was sent, with the request id that it was given.
    """

    index: int
    request: pb.CompleteRequest
    completion: pb.Completion | None = None
    error: RuvdError | None = None

    def text(self) -> str:
        """The answer's text. Raises the item's RuvdError."""
        return self.message().content

    def message(self) -> pb.Message:
        """The whole answer. Raises the item's RuvdError."""
        if self.completion is None:
            raise self.error or RuvdError(grpc.StatusCode.UNKNOWN, "", "no outcome")
        return self.completion.finished.message


@dataclass(slots=True)
class BatchSummary:
    """What has come of the batch so far, over all its calls.

    `usage.cached_tokens` is unset where no answer has them. `wall_seconds` is from the first call
    until the last outcome, waiting for a daemon included; `latency_seconds` is the sum of the
    answers' own total times, as in the daemon's `BatchSummary`.
    """

    succeeded: int = 0
    failed: int = 0
    usage: pb.Usage = field(default_factory=pb.Usage)
    wall_seconds: float = 0.0
    latency_seconds: float = 0.0

    def _add(self, outcome: BatchOutcome) -> None:
        if outcome.completion is None:
            self.failed += 1
            return
        self.succeeded += 1
        finished = outcome.completion.finished
        self.latency_seconds += to_seconds(finished.timings.total)
        self.usage.prompt_tokens += finished.usage.prompt_tokens
        self.usage.completion_tokens += finished.usage.completion_tokens
        if finished.usage.HasField("cached_tokens"):
            self.usage.cached_tokens += finished.usage.cached_tokens


class _Call:
    """One call: its items that have no outcome yet, by their numbers in the batch."""

    def __init__(self, items: dict[int, pb.CompleteRequest], max_concurrency: int) -> None:
        self.open = items
        self.request = pb.BatchCompleteRequest(
            items=items.values(), max_concurrency=max_concurrency
        )
        self._numbers = list(items)

    def outcome(self, response: pb.BatchCompleteResponse) -> BatchOutcome | None:
        """The outcome in the response; None for the summary, and for an item to be repeated."""
        result = response.result
        which = result.WhichOneof("outcome")
        if which is None:
            return None
        number = self._numbers[result.index]
        if which == "completion":
            return BatchOutcome(number, self.open.pop(number), completion=result.completion)
        error = error_from_status(result.error)
        if error.reason == "SHUTTING_DOWN":
            return None  # stays open: the next daemon does it
        return BatchOutcome(number, self.open.pop(number), error=error)


class Work:
    """The calls of one batch. `summary` grows with every outcome."""

    def __init__(
        self,
        max_concurrency: int,
        timeout: float | None,
        max_call_bytes: int,
        reconnect_seconds: float,
    ) -> None:
        self.summary = BatchSummary()
        self._max_concurrency = max_concurrency
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._max_call_bytes = max_call_bytes
        self._reconnect_seconds = reconnect_seconds
        self._taken = 0
        self._next: dict[int, pb.CompleteRequest] = {}
        self._next_bytes = 0
        self._due: deque[dict[int, pb.CompleteRequest]] = deque()
        self._began: float | None = None
        self._answered = False
        self._cut_since: float | None = None
        self._pauses = 0

    def add(self, item: BatchItem) -> bool:
        """Take an item; whether a call is full and due."""
        asked = request(item) if isinstance(item, str) else item
        if not asked.request_id:
            given, asked = asked, pb.CompleteRequest(request_id=uuid.uuid4().hex)
            asked.MergeFrom(given)
        size = asked.ByteSize() + _ITEM_BYTES
        full = self._next_bytes + size > self._max_call_bytes or len(self._next) == _MAX_ITEMS
        if full:
            self.flush()
        self._next[self._taken] = asked
        self._next_bytes += size
        self._taken += 1
        return bool(self._due)

    def flush(self) -> None:
        """What was added and is in no call yet is due."""
        if self._next:
            self._due.append(self._next)
        self._next, self._next_bytes = {}, 0

    def next_call(self) -> _Call | None:
        """The call to make now."""
        if not self._due:
            return None
        self._began = self._began or time.monotonic()
        return _Call(self._due.popleft(), self._max_concurrency)

    def seconds_left(self) -> float | None:
        """What is left of the batch's time; None if it has no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def take(self, call: _Call, response: pb.BatchCompleteResponse) -> BatchOutcome | None:
        """The outcome in the response, if it is one to tell."""
        self._answered = True
        outcome = call.outcome(response)
        if outcome is not None:
            self._cut_since, self._pauses = None, 0
            self._count(outcome)
        return outcome

    def refused(self, call: _Call, error: RuvdError) -> BatchOutcome | None:
        """A call that failed: raises, or makes its items due again, or is its only item's outcome.

        A call is refused whole for its size and for a field that this daemon does not know. Then
        its halves are due, until the item that is to blame is alone.
        """
        if error.code is grpc.StatusCode.UNAVAILABLE and self._answered:
            return None  # `ended` repeats what is open
        about_the_call = any(each.field == "max_concurrency" for each in error.violations)
        about_items = error.reason == "INVALID_REQUEST" and not about_the_call
        too_large = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not error.reason
        if not (about_items or too_large):
            raise error
        numbers = list(call.open)
        if len(numbers) == 1:
            outcome = BatchOutcome(numbers[0], call.open.pop(numbers[0]), error=error)
            self._count(outcome)
            return outcome
        half = len(numbers) // 2
        for part in (numbers[half:], numbers[:half]):
            self._due.appendleft({number: call.open.pop(number) for number in part})
        return None

    def ended(self, call: _Call, error: RuvdError | None) -> float:
        """What is still open is due again, after a pause of so many seconds.

        Raises when nothing has come for `reconnect_seconds`.
        """
        if not call.open:
            return 0.0
        if error is None:
            text = "the daemon went down before every item had its outcome"
            error = RuvdError(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", text)
        now = time.monotonic()
        self._cut_since = self._cut_since or now
        if now - self._cut_since >= self._reconnect_seconds:
            raise error
        self._due.appendleft(call.open)
        self._pauses += 1
        return float(min(_LONGEST_PAUSE_SECONDS, 0.05 * 2**self._pauses))

    def _count(self, outcome: BatchOutcome) -> None:
        self.summary._add(outcome)  # noqa: SLF001  # nobody else's to call
        self.summary.wall_seconds = time.monotonic() - (self._began or 0.0)
