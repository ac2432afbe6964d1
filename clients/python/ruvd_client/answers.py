"""One answer over as many calls as it takes: what has come of it, and what to call next.

A stream that breaks without a word of ruvd's is not the end of its answer: it is resumed after the
last event, or asked for again under the same request id. The rules are those of
`clients/CONFORMANCE.md`, the same in every language. Pure but for the clock, which can be given;
`ruvd_client.completions` does the I/O, for threads and for asyncio.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TypeAlias

import grpc

from ruvd_client.protocol import RuvdError, to_duration
from ruvd_client.v1 import session_service_pb2 as pb

# Complete and ResumeCompletion stream the same events.
Request: TypeAlias = pb.CompleteRequest | pb.ResumeCompletionRequest

# The daemon waits as long for a reader to come back as the reader tries to.
GRACE_SECONDS = 10.0
RECONNECT_SECONDS = 10.0
# What a lost connection may show itself as; any other status is final, as are ruvd's errors.
_BREAKS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


def resumable(request: pb.CompleteRequest) -> pb.CompleteRequest:
    """The request, with what it takes to find its completion again: a request id and a grace."""
    if not request.request_id:
        request.request_id = str(uuid.uuid4())
    if not request.HasField("disconnect_grace"):
        request.disconnect_grace.CopyFrom(to_duration(GRACE_SECONDS))
    return request


class Answer:
    """What has come of one answer. `finished` or `error` is set at the end, and not before.

    `timeout` is for all calls together, `reconnect_seconds` for a break until the next event.
    """

    def __init__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request
        self._call = request
        self.started: pb.Started | None = None
        self.finished: pb.Finished | None = None
        self.error: RuvdError | None = None
        self.last_sequence = 0
        if isinstance(request, pb.ResumeCompletionRequest):
            self.last_sequence = request.after_sequence
        # What came before an event in the middle, nobody here knows.
        self._from_the_beginning = self.last_sequence == 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._arguments: dict[int, str] = {}
        self._rest: list[pb.Delta] = []
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._reconnect_seconds = reconnect_seconds
        self._resumes = False  # whether the last call was to resume
        self._broken_since: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.finished is not None or self.error is not None

    def seconds_left(self) -> float | None:
        """What is left until the caller's deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def next_call(self) -> Request:
        """The call to make now: the first one again, or what reads on after the last event."""
        call = self._call_after_last()
        self._resumes = isinstance(call, pb.ResumeCompletionRequest)
        return call

    def take(self, event: pb.CompletionEvent) -> None:
        """Keep what the event says. Raises DATA_LOSS if the answer is not what came of it."""
        self._broken_since, self._pause_seconds = None, _FIRST_PAUSE_SECONDS
        self.last_sequence = event.sequence
        if event.HasField("started"):
            self.started = event.started
        elif event.HasField("delta"):
            self._append(event.delta)
        elif event.HasField("finished"):
            if self._from_the_beginning:
                self._rest = self._missing_of(event.finished.message)
            self.finished = event.finished

    def deltas(self, event: pb.CompletionEvent) -> list[pb.Delta]:
        """What the event adds to the answer. Of Finished that is what no delta has brought."""
        if event.HasField("delta"):
            return [event.delta]
        return self._rest if event.HasField("finished") else []

    def broke(self, error: RuvdError) -> float:
        """The stream has ended with this error: how long to wait before the next call, in seconds.

        Raises what the answer has failed with if there is to be none.
        """
        final = error.reason or error.code not in _BREAKS
        if final and not self._may_begin_anew(error):
            raise self.failed(error)
        now = self._clock()
        if self._deadline is not None and now >= self._deadline:
            text = f"the deadline has passed: {error.message}"
            raise self.failed(RuvdError(grpc.StatusCode.DEADLINE_EXCEEDED, "", text)) from error
        if self._broken_since is None:
            self._broken_since = now
        left = self._broken_since + self._reconnect_seconds - now
        if left <= 0:
            raise self.failed(error)
        if self._deadline is not None:
            left = min(left, self._deadline - now)
        pause = min(self._pause_seconds, left)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        return pause

    def failed(self, error: RuvdError) -> RuvdError:
        """The answer has ended with this error."""
        self.error = error
        return error

    def cancel_request(self) -> pb.CancelCompletionRequest | None:
        """The call that stops the completion now and not after its grace.

        None where none is due: it has ended, or is to go on without a reader.
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

    def _call_after_last(self) -> Request:
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

    def _may_begin_anew(self, error: RuvdError) -> bool:
        """Whether the daemon has forgotten what nobody has seen anything of; forgets it as well."""
        forgotten = error.reason == "COMPLETION_NOT_FOUND" and self._resumes
        delivered = self._text or self._reasoning or self._arguments
        if not forgotten or delivered or isinstance(self.request, pb.ResumeCompletionRequest):
            return False
        self.started, self.last_sequence = None, 0
        return True

    def _append(self, delta: pb.Delta) -> None:
        part = delta.WhichOneof("part")
        if part == "text":
            self._text.append(delta.text)
        elif part == "reasoning":
            self._reasoning.append(delta.reasoning)
        elif part == "tool_call":
            index = delta.tool_call.index
            self._arguments[index] = self._arguments.get(index, "") + delta.tool_call.arguments

    def _missing_of(self, message: pb.Message) -> list[pb.Delta]:
        came = "".join(self._text)
        if not message.content.startswith(came):
            text = "the answer is not what came of it before the stream broke"
            raise self.failed(RuvdError(grpc.StatusCode.DATA_LOSS, "", text))
        missing = []
        if reasoning := _beyond("".join(self._reasoning), message.reasoning):
            missing.append(pb.Delta(reasoning=reasoning))
        if content := message.content[len(came) :]:
            missing.append(pb.Delta(text=content))
        for index, call in enumerate(message.tool_calls):
            known = self._arguments.get(index)
            if known is None:
                whole = pb.ToolCallDelta(
                    index=index, id=call.id, name=call.name, arguments=call.arguments
                )
                missing.append(pb.Delta(tool_call=whole))
            elif arguments := _beyond(known, call.arguments):
                rest = pb.ToolCallDelta(index=index, arguments=arguments)
                missing.append(pb.Delta(tool_call=rest))
        return missing


def _beyond(came: str, whole: str) -> str:
    return whole[len(came) :] if whole.startswith(came) else ""
