"""The calls of one batch: their sizes, their retries and their outcomes.

This module does no I/O but reads the clock; `ruvd_client.batches` makes the calls. Every item has a
request id, its own or one made here, so that an item which is repeated after a connection failure
is not generated twice. With a session this holds across restarts of the daemon; without one, only
while the daemon runs and within its `completion_retention`.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from ruvd_client.failover import Retry, Round, Step, leaves
from ruvd_client.parts import MessageParts
from ruvd_client.protocol import (
    REQUEST_TOO_LARGE,
    RuvdError,
    error_from_status,
    request,
    to_seconds,
)
from ruvd_client.reasons import ErrorReason
from ruvd_client.v1 import session_service_pb2 as pb

BatchItem: TypeAlias = pb.CompleteRequest | str

# Below the daemon's default max_request_bytes of 4 MiB.
MAX_CALL_BYTES = 3 << 20
RECONNECT_SECONDS = 60.0
_MAX_ITEMS = 10_000
_ITEM_BYTES = 8  # the maximum overhead of an item in a call
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The `completion` or the `error` of the item at position `index`, starting at 0.

    `request` is the item as it was sent, with its request id.
    """

    index: int
    request: pb.CompleteRequest
    completion: pb.Completion | None = None
    error: RuvdError | None = None

    def text(self) -> str:
        """Returns the answer's text. Raises the item's RuvdError."""
        return self.message().content

    def message(self) -> pb.Message:
        """Returns the whole answer. Raises the item's RuvdError."""
        if self.completion is None:
            raise self.error or RuvdError(grpc.StatusCode.UNKNOWN, "", "no outcome")
        return self.completion.finished.message


@dataclass(slots=True)
class BatchSummary:
    """The totals of the batch so far, over all its calls.

    `usage.cached_tokens` is unset if no answer reports it. `wall_seconds` is the time from the
    first call until the last outcome, including the time without a daemon; `latency_seconds` is
    the sum of the answers' total times, as in the daemon's `BatchSummary`.
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
    """One call and those of its items that have no outcome yet, by their numbers in the batch."""

    def __init__(
        self, items: dict[int, pb.CompleteRequest], max_concurrency: int, *, has_others: bool
    ) -> None:
        self.unfinished = items
        self._has_others = has_others
        self.request = pb.BatchCompleteRequest(
            items=items.values(), max_concurrency=max_concurrency
        )
        self._numbers = list(items)
        self._parts = MessageParts()

    def outcome(self, response: pb.BatchCompleteResponse) -> BatchOutcome | None:
        """Returns the response's outcome, or None.

        A summary, a part of a large message and an item that is to be repeated have none. Raises
        DATA_LOSS if a part is missing.
        """
        if response.HasField("message_part"):
            self._parts.add(response.message_part)
            return None
        result = response.result
        which = result.WhichOneof("outcome")
        if which is None:
            return None
        number = self._numbers[result.index]
        if which == "completion":
            if result.completion.finished.message_in_parts:
                result.completion.finished.message.CopyFrom(self._parts.take())
            return BatchOutcome(number, self.unfinished.pop(number), completion=result.completion)
        error = error_from_status(result.error)
        if error.reason == ErrorReason.SHUTTING_DOWN or (self._has_others and leaves(error)):
            return None  # stays unfinished and is repeated at another daemon, or when one runs
        return BatchOutcome(number, self.unfinished.pop(number), error=error)


class BatchCalls:
    """The calls of one batch. `summary` is updated with every outcome."""

    def __init__(
        self,
        max_concurrency: int,
        timeout: float | None,
        max_call_bytes: int,
        reconnect_seconds: float,
        attempts_per_round: int = 1,
    ) -> None:
        self.summary = BatchSummary()
        self._max_concurrency = max_concurrency
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._max_call_bytes = max_call_bytes
        self._reconnect_seconds = reconnect_seconds
        self._item_count = 0
        self._unsent: dict[int, pb.CompleteRequest] = {}
        self._unsent_bytes = 0
        self._pending: deque[dict[int, pb.CompleteRequest]] = deque()
        self._started_at: float | None = None
        self._has_response = False
        self._disconnected_since: float | None = None
        self._attempts = 0
        self._has_others = attempts_per_round > 1
        self._round = Round(attempts_per_round)

    def add(self, item: BatchItem) -> bool:
        """Adds an item and returns whether a call is full and can be made."""
        item_request = request(item) if isinstance(item, str) else item
        if not item_request.request_id:
            without_id = item_request
            item_request = pb.CompleteRequest(request_id=uuid.uuid4().hex)
            item_request.MergeFrom(without_id)
        size = item_request.ByteSize() + _ITEM_BYTES
        full = self._unsent_bytes + size > self._max_call_bytes or len(self._unsent) == _MAX_ITEMS
        if full:
            self.flush()
        self._unsent[self._item_count] = item_request
        self._unsent_bytes += size
        self._item_count += 1
        return bool(self._pending)

    def flush(self) -> None:
        """Puts the added items that are in no call yet into one."""
        if self._unsent:
            self._pending.append(self._unsent)
        self._unsent, self._unsent_bytes = {}, 0

    def next_call(self) -> _Call | None:
        """Returns the next call, or None if none is pending."""
        if not self._pending:
            return None
        self._started_at = self._started_at or time.monotonic()
        items = self._pending.popleft()
        return _Call(items, self._max_concurrency, has_others=self._has_others)

    def seconds_left(self) -> float | None:
        """Returns the seconds until the batch's deadline, or None if it has no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def handle_response(
        self, call: _Call, response: pb.BatchCompleteResponse
    ) -> BatchOutcome | None:
        """Records a response and returns its outcome, if it has one."""
        self._has_response = True
        outcome = call.outcome(response)
        if outcome is not None:
            self._disconnected_since, self._attempts = None, 0
            self._round.begin()
            self._count(outcome)
        return outcome

    def handle_failure(self, call: _Call, error: RuvdError) -> BatchOutcome | None:
        """Handles the failure of a call. Raises the error unless it is due to a single item.

        The daemon rejects a whole call for its size or for an unknown field of one item. Such calls
        are split in two until the item is alone; the error is then returned as its outcome.
        """
        lost = error.code is grpc.StatusCode.UNAVAILABLE
        if lost and self._has_response:
            return None  # `finish` repeats the unfinished items
        if self._has_others and (leaves(error) or (lost and not error.reason)):
            if self._round.is_last():
                raise error
            return None
        about_call = any(violation.field == "max_concurrency" for violation in error.violations)
        about_items = error.reason == ErrorReason.INVALID_REQUEST and not about_call
        if not (about_items or error.reason == REQUEST_TOO_LARGE):
            raise error
        numbers = list(call.unfinished)
        if len(numbers) == 1:
            outcome = BatchOutcome(numbers[0], call.unfinished.pop(numbers[0]), error=error)
            self._count(outcome)
            return outcome
        half = len(numbers) // 2
        for part in (numbers[half:], numbers[:half]):
            self._pending.appendleft({number: call.unfinished.pop(number) for number in part})
        return None

    def finish(self, call: _Call, error: RuvdError | None) -> Retry:
        """Schedules the unfinished items again and returns the next attempt.

        Raises the error if there was no outcome for `reconnect_seconds`.
        """
        if not call.unfinished:
            return Retry(Step.STAY, 0.0)
        if error is None:
            text = "the daemon shut down before every item had an outcome"
            error = RuvdError(grpc.StatusCode.UNAVAILABLE, ErrorReason.SHUTTING_DOWN, text)
        now = time.monotonic()
        self._disconnected_since = self._disconnected_since or now
        if now - self._disconnected_since >= self._reconnect_seconds:
            raise error
        self._pending.appendleft(call.unfinished)
        step = Step.STAY
        if self._has_others:
            step = Step.LEAVE if leaves(error) else Step.FAIL_OVER
        if not self._round.failed():
            return Retry(step, 0.0)
        self._attempts += 1
        return Retry(step, float(min(_LONGEST_PAUSE_SECONDS, 0.05 * 2**self._attempts)))

    def _count(self, outcome: BatchOutcome) -> None:
        self.summary._add(outcome)  # noqa: SLF001  # private to this module
        self.summary.wall_seconds = time.monotonic() - (self._started_at or 0.0)
