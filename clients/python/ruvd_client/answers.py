"""The state of one answer, which may be received over several calls.

When a stream breaks without an error of ruvd's, the answer is resumed after its last event or
requested again with the same request id, at the same address or at another one. The rules are in
`clients/CONFORMANCE.md` and are the same in every language. This module does no I/O and takes its
clock as an argument; `ruvd_client.completions` makes the calls, for threads and for asyncio.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TypeAlias

import grpc

from ruvd_client.failover import Retry, Round, Step, leaves
from ruvd_client.parts import MessageParts
from ruvd_client.protocol import RuvdError, to_duration
from ruvd_client.reasons import ErrorReason
from ruvd_client.v1 import session_service_pb2 as pb

# Complete and ResumeCompletion stream the same events.
Request: TypeAlias = pb.CompleteRequest | pb.ResumeCompletionRequest

# The daemon waits for a reader to return for as long as the reader tries to reconnect.
GRACE_SECONDS = 10.0
RECONNECT_SECONDS = 10.0
# A lost connection may cause these codes. Other codes, and errors with a ruvd reason, are final.
_CONNECTION_ERRORS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
# A request that is repeated may be what kills the daemons.
_MAX_RESTARTS = 3


def resumable(request: pb.CompleteRequest) -> pb.CompleteRequest:
    """Returns the request with a request id and a disconnect grace, which resuming requires."""
    if not request.request_id:
        request.request_id = str(uuid.uuid4())
    if not request.HasField("disconnect_grace"):
        request.disconnect_grace.CopyFrom(to_duration(GRACE_SECONDS))
    return request


class Answer:
    """The state of one answer. `finished` or `error` is set when it ends, and not before.

    `timeout` limits all calls together; `reconnect_seconds` limits the time between a connection
    failure and the next event. `attempts_per_round` is 1 for a client with one address. The caller
    sets `delivered` when it hands on text, reasoning or a tool call.
    """

    def __init__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
        attempts_per_round: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request

        self.started: pb.Started | None = None
        self.finished: pb.Finished | None = None
        self.error: RuvdError | None = None
        self.last_sequence = 0
        self.delivered = False
        if isinstance(request, pb.ResumeCompletionRequest):
            self.last_sequence = request.after_sequence
        # False if the caller resumes after an event whose predecessors this client has not seen.
        self._has_all_events = self.last_sequence == 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._arguments: dict[int, str] = {}
        self._missing: list[pb.Delta] = []
        self._parts = MessageParts()
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._reconnect_seconds = reconnect_seconds
        self._is_resuming = False  # whether the last call was to resume
        self._has_event = False  # whether the last call had an event
        self._has_others = attempts_per_round > 1
        self._round = Round(attempts_per_round)
        self._not_found: RuvdError | None = None  # in this round
        self._restarts_left = _MAX_RESTARTS
        self._broken_since: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, successfully or with an error."""
        return self.finished is not None or self.error is not None

    @property
    def session_id(self) -> str:
        """The session of the answer, as far as it is known; empty if there is none."""
        return self.request.session_id or (self.started.session_id if self.started else "")

    def seconds_left(self) -> float | None:
        """Returns the seconds until the caller's deadline, or None if there is no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def next_call(self) -> Request:
        """Returns the next request: the first one again, or one to resume after the last event."""
        call = self._build_next_call()
        self._is_resuming = isinstance(call, pb.ResumeCompletionRequest)
        self._has_event = False
        return call

    def handle_event(self, event: pb.CompletionEvent) -> bool:
        """Records an event, and returns whether the caller gets it.

        The parts of a large message are put into Finished. Raises DATA_LOSS if the answer
        contradicts the text received before.
        """
        self._broken_since, self._pause_seconds = None, _FIRST_PAUSE_SECONDS
        self._has_event, self._not_found = True, None
        self._round.begin()
        self.last_sequence = event.sequence
        if event.HasField("started"):
            self.started = event.started
        elif event.HasField("delta"):
            self._append(event.delta)
        elif event.HasField("message_part"):
            self._add_part(event.message_part)
            return False
        elif event.HasField("finished"):
            if event.finished.message_in_parts:
                self._join_parts(event.finished)
            if self._has_all_events:
                self._missing = self._missing_deltas(event.finished.message)
            self.finished = event.finished
        return True

    def deltas(self, event: pb.CompletionEvent) -> list[pb.Delta]:
        """Returns the event's deltas; for Finished, those that were not received before."""
        if event.HasField("delta"):
            return [event.delta]
        return self._missing if event.HasField("finished") else []

    def handle_failure(self, error: RuvdError) -> Retry:
        """Returns the next attempt after a stream's error. Raises the error if it is final."""
        step = self._step_after(error)
        is_round_over = step is not Step.STAY and self._round.failed()
        if is_round_over and self._not_found is not None:
            raise self.fail(self._not_found)
        now = self._clock()
        if self._deadline is not None and now >= self._deadline:
            text = f"the deadline has passed: {error.message}"
            raise self.fail(RuvdError(grpc.StatusCode.DEADLINE_EXCEEDED, "", text)) from error
        if self._broken_since is None:
            self._broken_since = now
        remaining = self._broken_since + self._reconnect_seconds - now
        if remaining <= 0:
            raise self.fail(error)
        if self._has_others and not is_round_over:
            return Retry(step, 0.0)
        if self._deadline is not None:
            remaining = min(remaining, self._deadline - now)
        pause = min(self._pause_seconds, remaining)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        return Retry(step, pause)

    def fail(self, error: RuvdError) -> RuvdError:
        """Ends the answer with this error and returns the error."""
        self.error = error
        return error

    def cancel_request(self) -> pb.CancelCompletionRequest | None:
        """Returns the request that stops the completion at once, not after its disconnect grace.

        None if the completion has ended or is meant to continue without a reader.
        """
        request = self.request
        if self.ended:
            return None
        if isinstance(request, pb.ResumeCompletionRequest):
            completion_id = request.completion_id
        elif request.on_disconnect == pb.ON_DISCONNECT_CONTINUE:
            return None
        else:
            completion_id = ""
        if self.started is not None:
            return pb.CancelCompletionRequest(completion_id=self.started.completion_id)
        return pb.CancelCompletionRequest(
            completion_id=completion_id,
            session_id=request.session_id,
            request_id=request.request_id,
        )

    def _build_next_call(self) -> Request:
        if isinstance(self.request, pb.ResumeCompletionRequest):
            call = pb.ResumeCompletionRequest()
            call.CopyFrom(self.request)
            call.after_sequence = self.last_sequence
            return call
        if self.started is None:
            return self.request
        return pb.ResumeCompletionRequest(
            completion_id=self.started.completion_id, after_sequence=self.last_sequence
        )

    def _step_after(self, error: RuvdError) -> Step:
        """Returns the address of the next attempt. Raises the error if it is final."""
        if not error.reason and error.code in _CONNECTION_ERRORS:
            # A daemon that was reached may still run, and only it has the running completion.
            stays = self._has_event or not self._has_others
            return Step.STAY if stays else Step.FAIL_OVER
        if error.reason == ErrorReason.COMPLETION_NOT_FOUND and self._is_resuming:
            if self._restart():
                return Step.STAY
            if self._has_others:
                self._not_found = error
                return Step.ASK
        elif self._has_others and leaves(error) and self._restart():
            return Step.LEAVE
        raise self.fail(error)

    def _restart(self) -> bool:
        """Forgets an answer that was lost; returns False if a new one may not follow it."""
        if self.delivered or isinstance(self.request, pb.ResumeCompletionRequest):
            return False
        if self.started is not None:
            if not self._restarts_left:
                return False
            self._restarts_left -= 1
        self.started, self.last_sequence = None, 0
        self._text, self._reasoning, self._arguments = [], [], {}
        self._parts = MessageParts()
        return True

    def _add_part(self, part: pb.MessagePart) -> None:
        try:
            self._parts.add(part)
        except RuvdError as error:
            raise self.fail(error) from None

    def _join_parts(self, finished: pb.Finished) -> None:
        try:
            finished.message.CopyFrom(self._parts.take())
        except RuvdError as error:
            raise self.fail(error) from None

    def _append(self, delta: pb.Delta) -> None:
        part = delta.WhichOneof("part")
        if part == "text":
            self._text.append(delta.text)
        elif part == "reasoning":
            self._reasoning.append(delta.reasoning)
        elif part == "tool_call":
            index = delta.tool_call.index
            self._arguments[index] = self._arguments.get(index, "") + delta.tool_call.arguments

    def _missing_deltas(self, message: pb.Message) -> list[pb.Delta]:
        received = "".join(self._text)
        if not message.content.startswith(received):
            text = "the answer contradicts the text received before"
            raise self.fail(RuvdError(grpc.StatusCode.DATA_LOSS, "", text))
        missing = []
        if reasoning := _suffix_after("".join(self._reasoning), message.reasoning):
            missing.append(pb.Delta(reasoning=reasoning))
        if content := message.content[len(received) :]:
            missing.append(pb.Delta(text=content))
        for index, call in enumerate(message.tool_calls):
            known = self._arguments.get(index)
            if known is None:
                complete_call = pb.ToolCallDelta(
                    index=index, id=call.id, name=call.name, arguments=call.arguments
                )
                missing.append(pb.Delta(tool_call=complete_call))
            elif arguments := _suffix_after(known, call.arguments):
                addition = pb.ToolCallDelta(index=index, arguments=arguments)
                missing.append(pb.Delta(tool_call=addition))
        return missing


def _suffix_after(received: str, whole: str) -> str:
    return whole[len(received) :] if whole.startswith(received) else ""
