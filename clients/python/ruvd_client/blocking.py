"""The client for threads: calls block, an answer is an iterator.

One `Client` is one connection, safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

import grpc

from ruvd_client.protocol import (
    CHANNEL_OPTIONS,
    CompleteArguments,
    CreateSessionArguments,
    Messages,
    complete_request,
    create_session_request,
    error_from,
    resolve_address,
)
from ruvd_client.v1 import session_service_pb2 as pb
from ruvd_client.v1 import session_service_pb2_grpc as pb_grpc

Response = TypeVar("Response")


class _ResponseStream(Protocol):
    def __iter__(self) -> Iterator[pb.CompleteResponse]: ...
    def cancel(self) -> object: ...


class Completion(Iterator[str]):
    """One answer on its way: iterate for its text, leave the `with` block to cancel it.

    `started` and `finished` are set when their events have come, `finished` only if the answer
    was committed. Iterating raises RuvdError when the completion fails or is cancelled.
    """

    def __init__(self, request: pb.CompleteRequest, responses: _ResponseStream) -> None:
        self.request = request
        self.started: pb.Started | None = None
        self.finished: pb.Finished | None = None
        self._responses = responses
        self._events = self._read()

    def events(self) -> Iterator[pb.CompletionEvent]:
        """The events that have not been read yet, instead of their text."""
        return self._events

    def text(self) -> str:
        """Wait for the end; the whole answer."""
        for _ in self._events:
            pass
        return self.finished.message.content if self.finished else ""

    def cancel(self) -> None:
        """Stop generating. Does nothing after the end."""
        self._responses.cancel()

    def __next__(self) -> str:
        for event in self._events:
            if event.HasField("delta"):
                return event.delta.text
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

    def _read(self) -> Generator[pb.CompletionEvent, None, None]:
        try:
            for response in self._responses:
                event = response.event
                if event.HasField("started"):
                    self.started = event.started
                elif event.HasField("finished"):
                    self.finished = event.finished
                yield event
        except grpc.RpcError as error:
            raise error_from(error) from error


class Client:
    """A connection to ruvd, made when the first call needs it.

    `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS, else 127.0.0.1:50051.
    `timeout`, in seconds, holds for every call but `complete`. Every method raises RuvdError.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = None) -> None:
        self.address = resolve_address(address)
        self._timeout = timeout
        self._channel = grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.SessionServiceStub(self._channel)

    def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Make a session before its first turn."""
        request = create_session_request(arguments)
        return self._call(self._stub.CreateSession, request).session

    def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Read one session; with its messages in SESSION_VIEW_FULL."""
        request = pb.GetSessionRequest(session_id=session_id, view=view)
        return self._call(self._stub.GetSession, request).session

    def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> Iterator[pb.Session]:
        """All sessions that have these labels, page by page, in the order of creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = self._call(self._stub.ListSessions, request)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Delete a session with its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        self._call(self._stub.EndSession, request)

    def get_session_metrics(self) -> pb.SessionMetrics:
        """What the daemon has measured since it started."""
        request = pb.GetSessionMetricsRequest()
        return self._call(self._stub.GetSessionMetrics, request).metrics

    def complete(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> Completion:
        """Answer the new messages, in a session or, without `session_id`, stateless."""
        request = complete_request(messages, arguments)
        return Completion(request, self._stub.Complete(request, timeout=timeout))

    def close(self) -> None:
        """Close the connection; what runs on it is cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., Response], request: object) -> Response:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from(error) from error
