"""`ruvd.v1.SessionService`: convert, one call of the core, convert. Errors pass through."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext

from ruvd import convert
from ruvd.completions import Completions
from ruvd.convert import RequestLimits
from ruvd.model import ContextWindow
from ruvd.sessions import Sessions
from ruvd.telemetry import Statistics
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc


class SessionService(pb_grpc.SessionServiceServicer):
    """The servicer: one method an RPC."""

    def __init__(
        self,
        sessions: Sessions,
        completions: Completions,
        statistics: Statistics,
        limits: RequestLimits,
        default_window: ContextWindow,
    ) -> None:
        self._sessions = sessions
        self._completions = completions
        self._statistics = statistics
        self._limits = limits
        self._default_window = default_window

    async def CreateSession(  # noqa: D102, N802  # the proto documents and names it, as all below
        self, request: pb.CreateSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.CreateSessionResponse:
        new = convert.create_session(request, self._limits, self._default_window)
        state = await self._sessions.create(new)
        return pb.CreateSessionResponse(session=convert.session(state))

    async def GetSession(  # noqa: D102, N802
        self, request: pb.GetSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetSessionResponse:
        session_id = convert.session_id(request, self._limits)
        full = request.view == pb.SESSION_VIEW_FULL
        state = await self._sessions.get(session_id, with_messages=full)
        return pb.GetSessionResponse(session=convert.session(state))

    async def ListSessions(  # noqa: D102, N802
        self, request: pb.ListSessionsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListSessionsResponse:
        page = convert.list_sessions(request, self._limits)
        states, cursor = await self._sessions.list(
            after=page.after, limit=page.limit, labels=page.labels
        )
        return pb.ListSessionsResponse(
            sessions=[convert.session(state) for state in states],
            next_page_token=convert.page_token(cursor),
        )

    async def EndSession(  # noqa: D102, N802
        self, request: pb.EndSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.EndSessionResponse:
        session_id = convert.session_id(request, self._limits)
        await self._sessions.end(session_id, allow_missing=request.allow_missing)
        return pb.EndSessionResponse()

    async def GetSessionMetrics(  # noqa: D102, N802
        self, request: pb.GetSessionMetricsRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetSessionMetricsResponse:
        counts = await self._sessions.counts()
        return pb.GetSessionMetricsResponse(metrics=convert.metrics(counts, self._statistics))

    async def Complete(  # noqa: D102, N802
        self, request: pb.CompleteRequest, context: ServicerContext[Any, Any]
    ) -> AsyncGenerator[pb.CompleteResponse, None]:
        completion = self._completions.start(convert.complete(request, self._limits))
        async with aclosing(completion.events()) as events:
            async for event in events:
                yield convert.event(event)
