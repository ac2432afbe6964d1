"""The repetition of calls at the other addresses of a client.

This module does no I/O. The rules are in `clients/CONFORMANCE.md` and are the same in every
language: a failed call is repeated at the next address at once, and after a round of all addresses
there is a pause.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc

from ruvd_client.protocol import RuvdError
from ruvd_client.reasons import ErrorReason
from ruvd_client.v1 import session_service_pb2 as pb

SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
_CONFIGS: list[dict[str, Any]] = json.loads(SERVICE_CONFIG)["methodConfig"]
# The policy of the calls that only read, which is used for all calls where there are several
# addresses.
_POLICY: dict[str, Any] = next(each["retryPolicy"] for each in _CONFIGS if "retryPolicy" in each)
_READS = {name["method"] for each in _CONFIGS if "retryPolicy" in each for name in each["name"]}

# The daemon that has sent one of these runs, but not for this call.
_LEAVE = (ErrorReason.SHUTTING_DOWN, ErrorReason.OWNERSHIP_LOST)
_WITH_REQUEST_ID = (pb.CreateSessionRequest, pb.AppendMessagesRequest, pb.ForkSessionRequest)


class Step(Enum):
    """The address of the next attempt."""

    STAY = "the same address"
    FAIL_OVER = "the next address, for later calls, too: this one cannot be reached"
    LEAVE = "the next address, for later calls, too: the daemon has said that it stops"
    ASK = "the next address, for this call only"


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt of a call: its address, and the seconds to wait before it."""

    step: Step
    pause_seconds: float


class Round:
    """The attempts at all addresses, one after the other, without a pause between them."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._made = 0

    def failed(self) -> bool:
        """Counts a failed attempt, and returns whether the round is over. The next begins then."""
        self._made += 1
        is_over = self._made >= self._attempts
        if is_over:
            self._made = 0
        return is_over

    def is_last(self) -> bool:
        """Tells whether the attempt that runs is the last one of its round."""
        return self._made + 1 >= self._attempts

    def begin(self) -> None:
        """Begins a new round, after a success."""
        self._made = 0


def leaves(error: RuvdError) -> bool:
    """Tells whether a daemon says with this error that another one should be called."""
    return error.reason in _LEAVE


class UnaryAttempts:
    """The attempts of one unary call of a client with several addresses."""

    def __init__(
        self,
        request: Any,
        timeout: float | None,
        attempts_per_round: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name = type(request).__name__.removesuffix("Request")
        timeout = _TIMEOUTS.get(name) if timeout is None else timeout
        self._request = request
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._round = Round(attempts_per_round)
        self._is_read = name in _READS
        self._rounds_left = _POLICY["maxAttempts"]
        self._pause_seconds = _seconds(_POLICY["initialBackoff"])
        self._not_found: RuvdError | None = None
        if isinstance(request, _WITH_REQUEST_ID) and not request.request_id:
            request.request_id = str(uuid.uuid4())

    def seconds_left(self) -> float | None:
        """Returns the seconds until the deadline, or None if there is no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def handle_failure(self, error: RuvdError) -> Retry:
        """Returns the next attempt. Raises the error if it is final."""
        step = self._step_after(error)
        pause = 0.0
        if self._round.failed():
            self._rounds_left -= 1
            if self._not_found is not None:
                raise self._not_found
            if not self._rounds_left:
                raise error
            pause = self._pause_seconds
            longest = _seconds(_POLICY["maxBackoff"])
            self._pause_seconds = min(pause * _POLICY["backoffMultiplier"], longest)
        left = self.seconds_left()
        return Retry(step, pause if left is None else min(pause, left))

    def _step_after(self, error: RuvdError) -> Step:
        if leaves(error):
            return Step.LEAVE
        if error.reason == ErrorReason.COMPLETION_NOT_FOUND:
            self._not_found = error
            return Step.ASK
        if error.code is not grpc.StatusCode.UNAVAILABLE or (error.reason and not self._is_read):
            raise error
        if not error.reason and isinstance(self._request, pb.EndSessionRequest):
            self._request.allow_missing = True  # the lost call may have ended it
        return Step.FAIL_OVER


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


_TIMEOUTS = {
    name["method"]: _seconds(each["timeout"]) for each in _CONFIGS for name in each["name"]
}
