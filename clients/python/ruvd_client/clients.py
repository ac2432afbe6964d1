"""The clients: `Client` with blocking calls, for threads, and `AsyncClient` for asyncio.

A common base class has the methods that do not wait. The unary calls are written twice, because the
type system cannot express that a method is awaited in one class and not in the other.
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
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeAlias, TypeVar, Unpack

from ruvd_client.addresses import Address, count_attempts, parse_addresses
from ruvd_client.answers import RECONNECT_SECONDS, Answer, Request, resumable
from ruvd_client.batch_calls import MAX_CALL_BYTES, BatchCalls, BatchItem
from ruvd_client.batch_calls import RECONNECT_SECONDS as BATCH_RECONNECT_SECONDS
from ruvd_client.batches import AsyncBatch, Batch
from ruvd_client.completions import AsyncCompletion, Completion
from ruvd_client.connections import AsyncConnection, Connection
from ruvd_client.parts import join_pages
from ruvd_client.protocol import (
    DEFAULT_ADDRESS,
    CompleteArguments,
    CreateSessionArguments,
    Messages,
    complete_request,
    create_session_request,
    get_session_request,
    to_messages,
    update_session_request,
)
from ruvd_client.security import Credential, Tls, Token, find_credential, find_tls
from ruvd_client.v1 import session_service_pb2 as pb

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import (
        SessionServiceAsyncStub,
        SessionServiceStub,
    )

Response = TypeVar("Response")
AnyCompletion = TypeVar("AnyCompletion")
AnyBatch = TypeVar("AnyBatch")
AnyItems = TypeVar("AnyItems")
AsyncItems: TypeAlias = Iterable[BatchItem] | AsyncIterable[BatchItem]


class _Client(Generic[AnyCompletion, AnyItems, AnyBatch]):
    """The methods that do not wait, common to both clients."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        reconnect_seconds: float = RECONNECT_SECONDS,
        token: Token | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Creates a client, which connects at its first call.

        `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS or 127.0.0.1:50051. It may
        be a list with commas: the client uses one, and goes on with the next if that fails.
        `timeout`, in seconds, applies to every unary call; without it, `service_config.json` sets
        the timeouts and retries of the calls listed there. `metadata` is sent with every call,
        together with the current trace context if the process uses OpenTelemetry. A broken stream
        is resumed for up to `reconnect_seconds`.

        `token` is sent as a bearer token with every call: a str (none if it is empty), a Path whose
        file is read for every call, or a function that is called for every call. By default it is
        in the file RUVD_TOKEN_FILE, or else in RUVD_TOKEN. `tls` is for a daemon that listens with
        TLS, by default RUVD_TLS_CA_FILE and the like; its files are read now. Raises OSError if
        such a file cannot be read, and ValueError if it cannot be used, if a token would be sent to
        another machine without TLS, or if an address of a list is wrong.
        """
        self.address = address or os.environ.get("RUVD_ADDRESS") or DEFAULT_ADDRESS
        self._timeout = timeout
        self._reconnect_seconds = reconnect_seconds
        addresses = parse_addresses(self.address)
        self._attempts_per_round = count_attempts(addresses)
        tls = find_tls(addresses, tls)
        self._connect(addresses, metadata, find_credential(addresses, token, tls), tls)

    def complete(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> AnyCompletion:
        """Starts a completion of the new messages, stateless if there is no `session_id`.

        If the connection breaks, the answer continues after a reconnect, within the client's
        `reconnect_seconds`. `timeout`, in seconds, limits the whole answer.
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
        """Starts a batch, whose outcomes are returned in the order in which the items end.

        An item is a `request(...)`, or a str for one user message. Items are sent in calls of at
        most `max_call_bytes` and 10,000 items, one call after the other, and are taken from `items`
        only for the next call. An item larger than that is sent alone; if the daemon rejects it,
        the error is its outcome. `max_concurrency` 0 is the daemon's default. `timeout`, in
        seconds, limits the whole batch. If the daemon stops, the unfinished items are repeated when
        it is back; after `reconnect_seconds` without it, iterating raises RuvdError.
        """
        calls = BatchCalls(
            max_concurrency, timeout, max_call_bytes, reconnect_seconds, self._attempts_per_round
        )
        return self._batch(items, calls)

    def resume_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        after_sequence: int = 0,
        timeout: float | None = None,
    ) -> AnyCompletion:
        """Reads a completion from the event after `after_sequence` on.

        It is identified by its id, or by the session and the request id with which it was started.
        Leaving it early stops it, as with `complete`.
        """
        request = pb.ResumeCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            after_sequence=after_sequence,
        )
        return self._answer(request, timeout)

    def _answer(self, request: Request, timeout: float | None) -> AnyCompletion:
        answer = Answer(
            request,
            timeout=timeout,
            reconnect_seconds=self._reconnect_seconds,
            attempts_per_round=self._attempts_per_round,
        )
        return self._completion(answer)

    def _connect(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]],
        credential: Credential | None,
        tls: Tls | None,
    ) -> None:
        raise NotImplementedError

    def _completion(self, answer: Answer) -> AnyCompletion:
        raise NotImplementedError

    def _batch(self, items: AnyItems, calls: BatchCalls) -> AnyBatch:
        raise NotImplementedError


class Client(_Client[Completion, Iterable[BatchItem], Batch]):
    """A client with blocking calls, which threads may share. Every method raises RuvdError."""

    def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Creates a session before its first turn."""
        request = create_session_request(arguments)
        return self._call(lambda stub: stub.CreateSession, request).session

    def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Returns one session, including its messages with SESSION_VIEW_FULL.

        A history is read in as many calls as its size requires. It is consistent: if the session
        ends meanwhile, SESSION_NOT_FOUND is raised.
        """
        request = get_session_request(session_id, view)
        pages: list[pb.GetSessionResponse] = []
        while True:
            page = self._call(lambda stub: stub.GetSession, request)
            pages.append(page)
            if not page.next_page_token:
                return join_pages(pages)
            request.page_token = page.next_page_token

    def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> Iterator[pb.Session]:
        """Yields all sessions that have these labels, in the order of their creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = self._call(lambda stub: stub.ListSessions, request)
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
        compaction_instruction: str | None = None,
        update_mask: Iterable[str] | None = None,
    ) -> pb.Session:
        """Changes the given settings after the turns before it; `labels` replaces all labels.

        `update_mask` names the fields to change, by default those that are given. A field that it
        names although it is not given gets the daemon's default.
        """
        request = update_session_request(
            session_id,
            update_mask,
            idle_timeout_seconds,
            labels=labels,
            context_window=context_window,
            compaction_instruction=compaction_instruction,
        )
        return self._call(lambda stub: stub.UpdateSession, request).session

    def append_messages(
        self,
        session_id: str,
        messages: Messages = (),
        *,
        request_id: str = "",
        summary: str = "",
        summary_exchange_count: int | None = None,
    ) -> pb.Session:
        """Commits messages without generating an answer, after the turns before it.

        A `summary` is sent in place of the first `summary_exchange_count` exchanges of the history,
        by default of all but those that a trim of the context window keeps.
        """
        request = pb.AppendMessagesRequest(
            session_id=session_id,
            messages=to_messages(messages),
            request_id=request_id,
            summary=summary,
            summary_exchange_count=summary_exchange_count,
        )
        return self._call(lambda stub: stub.AppendMessages, request).session

    def fork_session(
        self,
        session_id: str,
        *,
        exchange_count: int | None = None,
        new_session_id: str = "",
        request_id: str = "",
    ) -> pb.Session:
        """Creates a session that starts with another one's first exchanges, by default all."""
        request = pb.ForkSessionRequest(
            session_id=session_id,
            exchange_count=exchange_count,
            new_session_id=new_session_id,
            request_id=request_id,
        )
        return self._call(lambda stub: stub.ForkSession, request).session

    def compact_session(
        self, session_id: str, *, dry_run: bool = False
    ) -> pb.CompactSessionResponse:
        """Summarises the exchanges before the last ones, which later prompts no longer have.

        With `dry_run` it only says what that would do.
        """
        request = pb.CompactSessionRequest(session_id=session_id, dry_run=dry_run)
        return self._call(lambda stub: stub.CompactSession, request)

    def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Deletes a session and its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        self._call(lambda stub: stub.EndSession, request)

    def list_models(self) -> pb.ListModelsResponse:
        """Returns the models that the engine offers, and the default model."""
        return self._call(lambda stub: stub.ListModels, pb.ListModelsRequest())

    def get_server_info(self) -> pb.GetServerInfoResponse:
        """Returns the daemon's version, features, limits and engine."""
        return self._call(lambda stub: stub.GetServerInfo, pb.GetServerInfoRequest())

    def get_session_metrics(self) -> pb.SessionMetrics:
        """Returns the daemon's measurements since it started."""
        request = pb.GetSessionMetricsRequest()
        return self._call(lambda stub: stub.GetSessionMetrics, request).metrics

    def health(self) -> bool:
        """Returns whether the daemon accepts turns, or one of several; False if none answers."""
        return self._connection.is_ready(self._timeout)

    def cancel_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        keep_partial: bool = False,
    ) -> None:
        """Stops any client's completion and returns when it has ended.

        With `keep_partial`, the part of the answer generated so far is committed.
        """
        request = pb.CancelCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            keep_partial=keep_partial,
        )
        self._call(lambda stub: stub.CancelCompletion, request)

    def close(self) -> None:
        """Closes the connection. Completions that are running on it lose their reader."""
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

    def _call(
        self, method: Callable[[SessionServiceStub], Callable[..., Response]], request: object
    ) -> Response:
        return self._connection.call(method, request, self._timeout)

    def _connect(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]],
        credential: Credential | None,
        tls: Tls | None,
    ) -> None:
        self._connection = Connection(addresses, metadata, credential, tls)

    def _completion(self, answer: Answer) -> Completion:
        return Completion(self._connection, answer)

    def _batch(self, items: Iterable[BatchItem], calls: BatchCalls) -> Batch:
        return Batch(self._connection, items, calls)


class AsyncClient(_Client[AsyncCompletion, AsyncItems, AsyncBatch]):
    """A client for asyncio, to be created in its event loop. Every method raises RuvdError."""

    async def create_session(self, **arguments: Unpack[CreateSessionArguments]) -> pb.Session:
        """Creates a session before its first turn."""
        request = create_session_request(arguments)
        return (await self._call(lambda stub: stub.CreateSession, request)).session

    async def get_session(
        self, session_id: str, view: pb.SessionView.ValueType = pb.SESSION_VIEW_BASIC
    ) -> pb.Session:
        """Returns one session, including its messages with SESSION_VIEW_FULL.

        A history is read in as many calls as its size requires. It is consistent: if the session
        ends meanwhile, SESSION_NOT_FOUND is raised.
        """
        request = get_session_request(session_id, view)
        pages: list[pb.GetSessionResponse] = []
        while True:
            page = await self._call(lambda stub: stub.GetSession, request)
            pages.append(page)
            if not page.next_page_token:
                return join_pages(pages)
            request.page_token = page.next_page_token

    async def list_sessions(
        self, label_filter: Mapping[str, str] | None = None, *, page_size: int = 0
    ) -> AsyncGenerator[pb.Session, None]:
        """Yields all sessions that have these labels, in the order of their creation."""
        request = pb.ListSessionsRequest(page_size=page_size, label_filter=label_filter or {})
        while True:
            page = await self._call(lambda stub: stub.ListSessions, request)
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
        compaction_instruction: str | None = None,
        update_mask: Iterable[str] | None = None,
    ) -> pb.Session:
        """Changes the given settings after the turns before it; `labels` replaces all labels.

        `update_mask` names the fields to change, by default those that are given. A field that it
        names although it is not given gets the daemon's default.
        """
        request = update_session_request(
            session_id,
            update_mask,
            idle_timeout_seconds,
            labels=labels,
            context_window=context_window,
            compaction_instruction=compaction_instruction,
        )
        return (await self._call(lambda stub: stub.UpdateSession, request)).session

    async def append_messages(
        self,
        session_id: str,
        messages: Messages = (),
        *,
        request_id: str = "",
        summary: str = "",
        summary_exchange_count: int | None = None,
    ) -> pb.Session:
        """Commits messages without generating an answer, after the turns before it.

        A `summary` is sent in place of the first `summary_exchange_count` exchanges of the history,
        by default of all but those that a trim of the context window keeps.
        """
        request = pb.AppendMessagesRequest(
            session_id=session_id,
            messages=to_messages(messages),
            request_id=request_id,
            summary=summary,
            summary_exchange_count=summary_exchange_count,
        )
        return (await self._call(lambda stub: stub.AppendMessages, request)).session

    async def fork_session(
        self,
        session_id: str,
        *,
        exchange_count: int | None = None,
        new_session_id: str = "",
        request_id: str = "",
    ) -> pb.Session:
        """Creates a session that starts with another one's first exchanges, by default all."""
        request = pb.ForkSessionRequest(
            session_id=session_id,
            exchange_count=exchange_count,
            new_session_id=new_session_id,
            request_id=request_id,
        )
        return (await self._call(lambda stub: stub.ForkSession, request)).session

    async def compact_session(
        self, session_id: str, *, dry_run: bool = False
    ) -> pb.CompactSessionResponse:
        """Summarises the exchanges before the last ones, which later prompts no longer have.

        With `dry_run` it only says what that would do.
        """
        request = pb.CompactSessionRequest(session_id=session_id, dry_run=dry_run)
        return await self._call(lambda stub: stub.CompactSession, request)

    async def end_session(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Deletes a session and its messages."""
        request = pb.EndSessionRequest(session_id=session_id, allow_missing=allow_missing)
        await self._call(lambda stub: stub.EndSession, request)

    async def list_models(self) -> pb.ListModelsResponse:
        """Returns the models that the engine offers, and the default model."""
        return await self._call(lambda stub: stub.ListModels, pb.ListModelsRequest())

    async def get_server_info(self) -> pb.GetServerInfoResponse:
        """Returns the daemon's version, features, limits and engine."""
        return await self._call(lambda stub: stub.GetServerInfo, pb.GetServerInfoRequest())

    async def get_session_metrics(self) -> pb.SessionMetrics:
        """Returns the daemon's measurements since it started."""
        request = pb.GetSessionMetricsRequest()
        return (await self._call(lambda stub: stub.GetSessionMetrics, request)).metrics

    async def health(self) -> bool:
        """Returns whether the daemon accepts turns, or one of several; False if none answers."""
        return await self._connection.is_ready(self._timeout)

    async def cancel_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        keep_partial: bool = False,
    ) -> None:
        """Stops any client's completion and returns when it has ended.

        With `keep_partial`, the part of the answer generated so far is committed.
        """
        request = pb.CancelCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            keep_partial=keep_partial,
        )
        await self._call(lambda stub: stub.CancelCompletion, request)

    async def close(self) -> None:
        """Closes the connection. Completions that are running on it lose their reader."""
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

    async def _call(
        self,
        method: Callable[[SessionServiceAsyncStub], Callable[..., Awaitable[Response]]],
        request: object,
    ) -> Response:
        return await self._connection.call(method, request, self._timeout)

    def _connect(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]],
        credential: Credential | None,
        tls: Tls | None,
    ) -> None:
        self._connection = AsyncConnection(addresses, metadata, credential, tls)

    def _completion(self, answer: Answer) -> AsyncCompletion:
        return AsyncCompletion(self._connection, answer)

    def _batch(self, items: AsyncItems, calls: BatchCalls) -> AsyncBatch:
        return AsyncBatch(self._connection, items, calls)
