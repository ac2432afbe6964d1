"""The clients: `Client` for threads, whose calls block, and `AsyncClient` for asyncio.

What needs no waiting is said once, for both; the calls that have one response are there twice,
because no type says that a method is awaited in one class and not in the other.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar, Unpack

from ruvd_client.answers import RECONNECT_SECONDS, Answer, Request, resumable
from ruvd_client.batch_calls import MAX_CALL_BYTES, BatchItem, Work
from ruvd_client.batch_calls import RECONNECT_SECONDS as BATCH_RECONNECT_SECONDS
from ruvd_client.batches import AsyncBatch, Batch
from ruvd_client.completions import AsyncCompletion, Completion
from ruvd_client.connections import AsyncConnection, Connection
from ruvd_client.protocol import (
    DEFAULT_ADDRESS,
    CompleteArguments,
    CreateSessionArguments,
    Messages,
    complete_request,
    create_session_request,
    to_messages,
    update_session_request,
)
from ruvd_client.v1 import session_service_pb2 as pb

Response = TypeVar("Response")
AnyCompletion = TypeVar("AnyCompletion")
AnyBatch = TypeVar("AnyBatch")
AnyItems = TypeVar("AnyItems")
AsyncItems: TypeAlias = Iterable[BatchItem] | AsyncIterable[BatchItem]


class _Client(Generic[AnyCompletion, AnyItems, AnyBatch]):
    """What needs no waiting."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        """Make a client; it connects when the first call needs it.

        `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS, else 127.0.0.1:50051.
        `timeout`, in seconds, holds for every call that streams no answer; without it those that
        may be repeated have the time-outs and retries of `service_config.json`. `metadata` goes
        out with every call, and so does the trace it is part of, where the process uses
        OpenTelemetry. A stream that breaks is resumed for `reconnect_seconds`.
        """
        self.address = address or os.environ.get("RUVD_ADDRESS") or DEFAULT_ADDRESS
        self._timeout = timeout
        self._reconnect_seconds = reconnect_seconds
        self._connect(metadata)

    def complete(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> AnyCompletion:
        """Answer the new messages, in a session or, without `session_id`, stateless.

        When the connection breaks, the answer goes on as soon as there is one again, within the
        client's `reconnect_seconds` and `timeout`, which is for all of it.
        """
        return self._answer(resumable(complete_request(messages, arguments)), timeout)

    def batch(
        self,
        items: AnyItems,
        *,
        max_concurrency: int = 0,
        timeout: float | None = None,
        max_call_bytes: int = MAX_CALL_BYTES,
        reconnect_seconds: float = BATCH_RECONNECT_SECONDS,
    ) -> AnyBatch:
        """Answer many requests; each outcome comes as soon as it is there, in no order.

        An item is a `request(...)`, or a str for one user message. They go in calls of
        `max_call_bytes` and 10,000 items at most, one call after the other, and are taken from
        `items` only then; a larger one goes alone, and the daemon's refusal is its outcome.
        `max_concurrency` 0 is the daemon's default; `timeout`, in seconds, is for the whole
        batch. If the daemon goes away on the way, what has no outcome is repeated once it is
        back, within `reconnect_seconds`; iterating raises RuvdError after that.
        """
        work = Work(max_concurrency, timeout, max_call_bytes, reconnect_seconds)
        return self._batch(items, work)

    def resume_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        after_sequence: int = 0,
        timeout: float | None = None,
    ) -> AnyCompletion:
        """Read a completion on, after the event of that number.

        Name it by its id, or by the session and the request id that it began with. Leaving it
        early stops it, as leaving that of `complete` does.
        """
        request = pb.ResumeCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            after_sequence=after_sequence,
        )
        return self._answer(request, timeout)

    def _answer(self, request: Request, timeout: float | None) -> AnyCompletion:
        reconnect = self._reconnect_seconds
        return self._completion(Answer(request, timeout=timeout, reconnect_seconds=reconnect))

    def _connect(self, metadata: Sequence[tuple[str, str]]) -> None:
        raise NotImplementedError

    def _completion(self, answer: Answer) -> AnyCompletion:
        raise NotImplementedError

    def _batch(self, items: AnyItems, work: Work) -> AnyBatch:
        raise NotImplementedError


class Client(_Client[Completion, Iterable[BatchItem], Batch]):
    """A connection to ruvd, safe to share between threads. Every method raises RuvdError."""

    def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Make a session before its first turn."""
        request = create_session_request(arguments)
        return self._call(self._connection.stub.CreateSession, request).session

    def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Read one session; with its messages in SESSION_VIEW_FULL."""
        request = pb.GetSessionRequest(session_id=session_id, view=view)
        return self._call(self._connection.stub.GetSession, request).session

    def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> Iterator[pb.Session]:
        """All sessions that have these labels, page by page, in the order of creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = self._call(self._connection.stub.ListSessions, request)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def update_session(
        self,
        session_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        idle_timeout_seconds: float | None = None,
        context_window: pb.ContextWindow | None = None,
    ) -> pb.Session:
        """Change what is given, once the turns before it are done; `labels` are replaced."""
        request = update_session_request(session_id, labels, idle_timeout_seconds, context_window)
        return self._call(self._connection.stub.UpdateSession, request).session

    def append_messages(
        self, session_id: str, messages: Messages, *, request_id: str = ""
    ) -> pb.Session:
        """Commit messages without generating, once the turns before it are done."""
        request = pb.AppendMessagesRequest(
            session_id=session_id, messages=to_messages(messages), request_id=request_id
        )
        return self._call(self._connection.stub.AppendMessages, request).session

    def fork_session(
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
        return self._call(self._connection.stub.ForkSession, request).session

    def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Delete a session with its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        self._call(self._connection.stub.EndSession, request)

    def list_models(self) -> pb.ListModelsResponse:
        """Which models the engine offers, and the one that answers where a call names none."""
        return self._call(self._connection.stub.ListModels, pb.ListModelsRequest())

    def get_session_metrics(self) -> pb.SessionMetrics:
        """What the daemon has measured since it started."""
        request = pb.GetSessionMetricsRequest()
        return self._call(self._connection.stub.GetSessionMetrics, request).metrics

    def cancel_completion(
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
        self._call(self._connection.stub.CancelCompletion, request)

    def close(self) -> None:
        """Close the connection; answers on it lose their reader."""
        self._connection.close()

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
        return self._connection.call(method, request, self._timeout)

    def _connect(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._connection = Connection(self.address, metadata)

    def _completion(self, answer: Answer) -> Completion:
        return Completion(self._connection, answer)

    def _batch(self, items: Iterable[BatchItem], work: Work) -> Batch:
        begin = partial(self._connection.stub.BatchComplete, metadata=self._connection.metadata())
        return Batch(begin, items, work)


class AsyncClient(_Client[AsyncCompletion, AsyncItems, AsyncBatch]):
    """A connection to ruvd; create it in its event loop. Every method raises RuvdError."""

    async def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Make a session before its first turn."""
        request = create_session_request(arguments)
        return (await self._call(self._connection.stub.CreateSession, request)).session

    async def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Read one session; with its messages in SESSION_VIEW_FULL."""
        request = pb.GetSessionRequest(session_id=session_id, view=view)
        return (await self._call(self._connection.stub.GetSession, request)).session

    async def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> AsyncGenerator[pb.Session, None]:
        """All sessions that have these labels, page by page, in the order of creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = await self._call(self._connection.stub.ListSessions, request)
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
        return (await self._call(self._connection.stub.UpdateSession, request)).session

    async def append_messages(
        self, session_id: str, messages: Messages, *, request_id: str = ""
    ) -> pb.Session:
        """Commit messages without generating, once the turns before it are done."""
        request = pb.AppendMessagesRequest(
            session_id=session_id, messages=to_messages(messages), request_id=request_id
        )
        return (await self._call(self._connection.stub.AppendMessages, request)).session

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
        return (await self._call(self._connection.stub.ForkSession, request)).session

    async def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Delete a session with its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        await self._call(self._connection.stub.EndSession, request)

    async def list_models(self) -> pb.ListModelsResponse:
        """Which models the engine offers, and the one that answers where a call names none."""
        return await self._call(self._connection.stub.ListModels, pb.ListModelsRequest())

    async def get_session_metrics(self) -> pb.SessionMetrics:
        """What the daemon has measured since it started."""
        request = pb.GetSessionMetricsRequest()
        return (await self._call(self._connection.stub.GetSessionMetrics, request)).metrics

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
        await self._call(self._connection.stub.CancelCompletion, request)

    async def close(self) -> None:
        """Close the connection; answers on it lose their reader."""
        await self._connection.close()

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
        return await self._connection.call(method, request, self._timeout)

    def _connect(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._connection = AsyncConnection(self.address, metadata)

    def _completion(self, answer: Answer) -> AsyncCompletion:
        return AsyncCompletion(self._connection, answer)

    def _batch(self, items: AsyncItems, work: Work) -> AsyncBatch:
        begin = partial(self._connection.stub.BatchComplete, metadata=self._connection.metadata())
        return AsyncBatch(begin, items, work)
