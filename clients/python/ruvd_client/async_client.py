"""The client for asyncio."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar, Unpack

from ruvd_client.addresses import Address
from ruvd_client.answers import Answer
from ruvd_client.async_completion import AsyncCompletion
from ruvd_client.async_connection import AsyncConnection
from ruvd_client.batch_calls import BatchCalls, BatchItem
from ruvd_client.batches import AsyncBatch
from ruvd_client.client_base import BaseClient
from ruvd_client.parts import join_pages
from ruvd_client.protocol import (
    CreateSessionArguments,
    Messages,
    create_session_request,
    get_session_request,
    to_messages,
    update_session_request,
)
from ruvd_client.security import Credential, Tls
from ruvd_client.v1 import session_service_pb2 as pb

if TYPE_CHECKING:
    from ruvd_client.v1.session_service_pb2_grpc import SessionServiceAsyncStub

Response = TypeVar("Response")
AsyncItems: TypeAlias = Iterable[BatchItem] | AsyncIterable[BatchItem]


class AsyncClient(BaseClient[AsyncCompletion, AsyncItems, AsyncBatch]):
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
