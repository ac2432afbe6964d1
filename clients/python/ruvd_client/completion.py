"""A running completion of the client with blocking calls. A broken stream is resumed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from ruvd_client.answers import Answer, Request
from ruvd_client.connection import Connection
from ruvd_client.protocol import RuvdError, error_from
from ruvd_client.v1 import session_service_pb2 as pb


def cancelled_error() -> RuvdError:
    """Returns the error of a completion that this client has cancelled."""
    return RuvdError(grpc.StatusCode.CANCELLED, "", "cancelled by this client")


def incomplete_error() -> RuvdError:
    """Returns the error of a stream that ended too early."""
    return RuvdError(grpc.StatusCode.UNKNOWN, "", "the stream ended without Finished")


class CompletionState:
    """The properties of both kinds of completion."""

    _answer: Answer

    @property
    def request(self) -> Request:
        """The request, including its request id."""
        return self._answer.request

    @property
    def started(self) -> pb.Started | None:
        """The Started event; None until the engine is available to the turn."""
        return self._answer.started

    @property
    def finished(self) -> pb.Finished | None:
        """The Finished event; None until the answer is complete and, in a session, committed."""
        return self._answer.finished

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last event received, after which to resume."""
        return self._answer.last_sequence


class Completion(CompletionState, Iterator[str]):
    """A running completion: an iterator over its text. Leaving the `with` block cancels it.

    A broken stream is resumed automatically. Iterating raises RuvdError when the completion fails
    or is cancelled.
    """

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._answer = answer
        self._connection = connection
        self._cancelled = threading.Event()
        self._metadata = connection.metadata()
        self._channel = connection.channels.current()
        self._drained = False
        self._responses = self._open_stream()

    def events(self) -> Generator[pb.CompletionEvent, None, None]:
        """Yields the events that have not been read yet.

        After a restart of the daemon, Finished, with the whole answer, may come without deltas.
        """
        while (event := self._next_event()) is not None:
            yield event

    def deltas(self) -> Generator[pb.Delta, None, None]:
        """Yields the deltas that have not been read yet: text, reasoning and tool calls."""
        for event in self.events():
            yield from self._answer.deltas(event)

    def text(self) -> str:
        """Waits for the end and returns the answer's whole text."""
        return self.message().content

    def message(self) -> pb.Message:
        """Waits for the end and returns the whole answer with its tool calls and reasoning."""
        while self._receive_event() is not None:
            pass
        return self.finished.message if self.finished else pb.Message()

    def cancel(self) -> None:
        """Stops the completion without waiting for its end. Has no effect after the end.

        With ON_DISCONNECT_CONTINUE the completion continues without this reader.
        """
        if self._cancelled.is_set() or self._answer.ended:
            return
        self._cancelled.set()
        self._responses.cancel()
        if request := self._answer.cancel_request():
            self._connection.cancel(request, self._metadata, self._answer.session_id, self._channel)

    def __next__(self) -> str:
        for event in self.events():
            for delta in self._answer.deltas(event):
                if delta.text:
                    return delta.text
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # Breaking out of a loop over the completion cancels it, too; gRPC then ends the stream.
        if not self._cancelled.is_set() and (request := self._answer.cancel_request()):
            self._connection.cancel_later(
                request, self._metadata, self._answer.session_id, self._channel
            )

    def _next_event(self) -> pb.CompletionEvent | None:
        """Returns the next event for the caller, or None after the last one."""
        event = self._receive_event()
        if event is not None and event.HasField("delta"):
            self._answer.delivered = True
        return event

    def _receive_event(self) -> pb.CompletionEvent | None:
        answer = self._answer
        if answer.error is not None:
            raise answer.error
        while answer.finished is None:
            try:
                event = next(self._responses).event
            except StopIteration:
                failure = incomplete_error()
            except grpc.RpcError as error:
                failure = error_from(error)
            else:
                if answer.handle_event(event):
                    return event  # type: ignore[no-any-return]
                continue
            if not self._is_cancelled():
                retry = answer.handle_failure(failure)
                self._cancelled.wait(retry.pause_seconds)
                self._channel = self._connection.channel_after(self._channel, retry.step)
            self._responses = self._open_stream()
        if not self._drained:
            self._drained = True
            with suppress(grpc.RpcError):
                next(self._responses, None)  # lets the call end normally, not cancelled
        return None

    def _open_stream(self) -> Any:
        if self._is_cancelled():
            raise self._answer.fail(cancelled_error())
        answer = self._answer
        request = answer.next_call()
        try:
            call = self._connection.stream(
                self._channel, request, answer.seconds_left(), self._metadata, answer.session_id
            )
        except RuvdError as error:
            answer.fail(error)
            raise
        if self._cancelled.is_set():  # by another thread in the meantime
            call.cancel()
        return call

    def _is_cancelled(self) -> bool:
        return self._cancelled.is_set() or self._connection.closed
