"""The client for asyncio: the same verbs, awaited; an answer is an async iterator.

grpc.aio reports a call that was cancelled here as CancelledError, which would look as if the
task had been cancelled. `AsyncCompletion` tells the two apart: its own `cancel` ends the
iteration with RuvdError, as in the blocking client.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, TypeVar, Unpack

import grpc
import grpc.aio

from ruvd_client.batch_calls import MAX_CALL_BYTES, RECONNECT_SECONDS, BatchItem, Work
from ruvd_client.batches import AsyncBatch
from ruvd_client.protocol import (
    CHANNEL_OPTIONS,
    CompleteArguments,
    CreateSessionArguments,
    Messages,
    RuvdError,
    complete_request,
    create_session_request,
    error_from,
    resolve_address,
    to_messages,
    update_session_request,
)
from ruvd_client.v1 import session_service_pb2 as pb
from ruvd_client.v1 import session_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceAsyncStub

Response = TypeVar("Response")
# Complete and ResumeCompletion stream the same events.
_Request: TypeAlias = pb.CompleteRequest | pb.ResumeCompletionRequest
_Response: TypeAlias = pb.CompleteResponse | pb.ResumeCompletionResponse


class _ResponseStream(Protocol):
    def __aiter__(self) -> AsyncIterator[_Response]: ...
    def cancel(self) -> object: ...


class AsyncCompletion(AsyncIterator[str]):
    """One answer on its way: iterate for its text, leave the `async with` block to cancel it.

    `started` and `finished` are set when their events have come, `finished` only if the answer
    was committed; `last_sequence` is the number of the last event that has come, to resume after.
    Iterating raises RuvdError when the completion fails or is cancelled.
    """

    def __init__(self, request: _Request, responses: _ResponseStream) -> None:
        self.request = request
        self.started: pb.Started | None = None
        self.finished: pb.Finished | None = None
        self.last_sequence = (
            request.after_sequence if isinstance(request, pb.ResumeCompletionRequest) else 0
        )
        self._responses = responses
        self._cancelled = False
        self._events = self._read()

    def events(self) -> AsyncIterator[pb.CompletionEvent]:
        """The events that have not been read yet, instead of their text."""
        return self._events

    async def deltas(self) -> AsyncGenerator[pb.Delta, None]:
        """What has not been read yet of the answer: text, reasoning and tool calls."""
        async for event in self._events:
            if event.HasField("delta"):
                yield event.delta

    async def text(self) -> str:
        """Wait for the end; the answer's whole text."""
        return (await self.message()).content

    async def message(self) -> pb.Message:
        """Wait for the end; the whole answer, with its tool calls and its reasoning."""
        async for _ in self._events:
            pass
        return self.finished.message if self.finished else pb.Message()

    def cancel(self) -> None:
        """Stop generating. Does nothing after the end."""
        self._cancelled = True
        self._responses.cancel()

    async def __anext__(self) -> str:
        async for event in self._events:
            if event.delta.text:
                return event.delta.text
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _read(self) -> AsyncGenerator[pb.CompletionEvent, None]:
        try:
            async for response in self._responses:
                event = response.event
                self.last_sequence = event.sequence
                if event.HasField("started"):
                    self.started = event.started
                elif event.HasField("finished"):
                    self.finished = event.finished
                yield event
        except grpc.RpcError as error:
            raise error_from(error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._cancelled or (task is not None and task.cancelling()):
                raise
            raise RuvdError(grpc.StatusCode.CANCELLED, "", "cancelled by this client") from error


class AsyncClient:
    """A connection to ruvd, made when the first call needs it. Create it in its event loop.

    `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS, else 127.0.0.1:50051.
    `timeout`, in seconds, holds for every call that streams no answer. Every method raises
    RuvdError.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = None) -> None:
        self.address = resolve_address(address)
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._stub: SessionServiceAsyncStub = pb_grpc.SessionServiceStub(self._channel)

    async def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Make a session before its first turn."""
        request = create_session_request(arguments)
        return (await self._call(self._stub.CreateSession, request)).session

    async def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Read one session; with its messages in SESSION_VIEW_FULL."""
        request = pb.GetSessionRequest(session_id=session_id, view=view)
        return (await self._call(self._stub.GetSession, request)).session

    async def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> AsyncGenerator[pb.Session, None]:
        """All sessions that have these labels, page by page, in the order of creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = await self._call(self._stub.ListSessions, request)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update_session(
        self,
        session_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        idle_timeout_seconds: float | None = None,
        context_window: pb.ContextWindow | None = None,
    ) -> pb.Session:
        """Change what is given, once the turns before it are done; `labels` are replaced."""
        request = update_session_request(session_id, labels, idle_timeout_seconds, context_window)
        return (await self._call(self._stub.UpdateSession, request)).session

    async def append_messages(
        self, session_id: str, messages: Messages, *, request_id: str = ""
    ) -> pb.Session:
        """Commit messages without generating, once the turns before it are done."""
        request = pb.AppendMessagesRequest(
            session_id=session_id, messages=to_messages(messages), request_id=request_id
        )
        return (await self._call(self._stub.AppendMessages, request)).session

    async def fork_session(
        self,
        session_id: str,
        *,
        exchange_count: int | None = None,
        new_session_id: str = "",
        request_id: str = "",
    ) -> pb.Session:
        """Make a session that begins with the first exchanges of another one, by default all."""
        request = pb.ForkSessionRequest(
            session_id=session_id,
            exchange_count=exchange_count,
            new_session_id=new_session_id,
            request_id=request_id,
        )
        return (await self._call(self._stub.ForkSession, request)).session

    async def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Delete a session with its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        await self._call(self._stub.EndSession, request)

    async def list_models(self) -> pb.ListModelsResponse:
        """Which models the engine offers, and the one that answers where a call names none."""
        return await self._call(self._stub.ListModels, pb.ListModelsRequest())

    async def get_session_metrics(self) -> pb.SessionMetrics:
        """What the daemon has measured since it started."""
        request = pb.GetSessionMetricsRequest()
        return (await self._call(self._stub.GetSessionMetrics, request)).metrics

    def complete(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> AsyncCompletion:
        """Answer the new messages, in a session or, without `session_id`, stateless."""
        request = complete_request(messages, arguments)
        return AsyncCompletion(request, self._stub.Complete(request, timeout=timeout))

    def batch(
        self,
        items: Iterable[BatchItem] | AsyncIterable[BatchItem],
        *,
        max_concurrency: int = 0,
        timeout: float | None = None,
        max_call_bytes: int = MAX_CALL_BYTES,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> AsyncBatch:
        """Answer many requests; each outcome comes as soon as it is there, in no order.

        An item is a `request(...)`, or a str for one user message. They go in calls of
        `max_call_bytes` and 10,000 items at most, one call after the other, and are taken from
        `items` only then; a larger one goes alone, and the daemon's refusal is its outcome.
        `max_concurrency` 0 is the daemon's default; `timeout`, in seconds, is for the whole
        batch. If the daemon goes away on the way, what has no outcome is repeated once it is
        back, within `reconnect_seconds`; iterating raises RuvdError after that.
        """
        work = Work(max_concurrency, timeout, max_call_bytes, reconnect_seconds)
        return AsyncBatch(self._stub.BatchComplete, items, work)

    def resume_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        after_sequence: int = 0,
        timeout: float | None = None,
    ) -> AsyncCompletion:
        """Read a completion on, after the event of that number.

        Name it by its id, or by the session and the request id that it began with.
        """
        request = pb.ResumeCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            after_sequence=after_sequence,
        )
        return AsyncCompletion(request, self._stub.ResumeCompletion(request, timeout=timeout))

    async def cancel_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        keep_partial: bool = False,
    ) -> None:
        """Stop a completion, whoever began it, and return when it has ended.

        With `keep_partial`, what there is of its answer is committed.
        """
        request = pb.CancelCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            keep_partial=keep_partial,
        )
        await self._call(self._stub.CancelCompletion, request)

    async def close(self) -> None:
        """Close the connection; what runs on it is cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        try:
            return await method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from(error) from error
