"""The servicer of `ruvd.v1.SessionService`: convert, call the core once, convert back.

Errors pass through to the interceptor.
"""

import contextlib
import logging
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from grpc.aio import ServicerContext

from ruvd.core.completions import allowances
from ruvd.core.completions.allowances import is_allowed
from ruvd.core.completions.batch import Batches, BatchOutcome, BatchSummary
from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import PermissionDenied, SessionEvicted, SessionExpired, SessionNotFound
from ruvd.core.model import Finished
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.memory import Memory
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import HistoryPage, SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.rpc import convert, message_parts, pages, requests, reservation, status
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import scoped_id
from ruvd.rpc.large_responses import SMALL_BYTES, LargeResponses
from ruvd.rpc.peers import batch_items, routing
from ruvd.rpc.server_info import ServerInfo
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_log = logging.getLogger("ruvd.rpc")
# The number of the event after Started: the prompt has been sent.
_FIRST_ANSWER = 2


class SessionService(pb_grpc.SessionServiceServicer):
    """The servicer, with one method per RPC."""

    def __init__(
        self,
        sessions: SessionRegistry,
        commands: SessionCommands,
        completions: CompletionRegistry,
        batches: Batches,
        statistics: TenantStatistics,
        limits: RequestLimits,
        policy: SessionPolicy,
        engine: Engine,
        memory: Memory,
        compactions: CompactionCalls,
        info: ServerInfo,
    ) -> None:
        self._info = info
        self._compactions = compactions
        self._sessions = sessions
        self._commands = commands
        self._completions = completions
        self._batches = batches
        self._statistics = statistics
        self._limits = limits
        self._policy = policy
        self._engine = engine
        self._large_responses = LargeResponses(memory)

    async def CreateSession(  # noqa: D102, N802  # the proto documents and names all RPCs
        self, request: pb.CreateSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.CreateSessionResponse:
        new = requests.create_session(request, self._limits, self._policy)
        state = await self._commands.create(new)
        return pb.CreateSessionResponse(session=convert.session(state))

    async def GetSession(  # noqa: D102, N802
        self, request: pb.GetSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetSessionResponse:
        page = requests.get_session(request, self._limits)
        session_id = scoped_id(request.session_id)
        if page is None:
            state = await self._sessions.get(session_id)
            hidden = not caller.sees_content()
            return pb.GetSessionResponse(session=convert.session(state, without_prompt=hidden))
        if not caller.sees_content():
            raise PermissionDenied("the role reader may not read messages")
        paged = request.page_size > 0
        session = (await self._sessions.get(session_id)).session
        is_too_long = session.message_count > page.max_messages
        if not paged and (is_too_long or session.size_bytes > page.max_bytes):
            raise pages.too_large(session)  # no need to read it
        size = pages.history_bytes(session, page.max_messages)
        await self._large_responses.hold(size, context)
        if size <= SMALL_BYTES:
            return await self._history(session_id, page, request)
        async with self._large_responses.build(size):
            return await self._history(session_id, page, request)

    async def _history(
        self, session_id: str, page: HistoryPage, request: pb.GetSessionRequest
    ) -> pb.GetSessionResponse:
        state = await self._sessions.history(session_id, page)
        if request.allow_message_parts and (part := pages.message_part(state, page.offset)):
            end = part.offset + len(part.data)
            is_last = end >= part.total_bytes
            token = pages.history_page_token(state, page.first + is_last, 0 if is_last else end)
            session = convert.session(state)
            return pb.GetSessionResponse(session=session, next_page_token=token, message_part=part)
        session = await pages.session_page(state, paged=request.page_size > 0)
        token = pages.history_page_token(state, page.first + len(session.messages))
        return pb.GetSessionResponse(session=session, next_page_token=token)

    async def ListSessions(  # noqa: D102, N802
        self, request: pb.ListSessionsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListSessionsResponse:
        page = requests.list_sessions(request, self._limits)
        async with self._large_responses.build():
            while True:
                states, cursor = await self._sessions.list(
                    after=page.after, limit=page.limit, labels=page.labels, tenant=caller.tenant()
                )
                response = pb.ListSessionsResponse(next_page_token=pages.page_token(cursor))
                count, size = await pages.add_sessions(states, response)
                if count == len(states):
                    break
                page = replace(page, limit=count)  # the store's cursor is that of a whole page
            await self._large_responses.hold(size, context)
            return response

    async def UpdateSession(  # noqa: D102, N802
        self, request: pb.UpdateSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.UpdateSessionResponse:
        session_id, changes = requests.update_session(request, self._limits, self._policy)
        state = await self._commands.update(session_id, changes, may_move=routing.may_move())
        return pb.UpdateSessionResponse(session=convert.session(state))

    async def AppendMessages(  # noqa: D102, N802
        self, request: pb.AppendMessagesRequest, context: ServicerContext[Any, Any]
    ) -> pb.AppendMessagesResponse:
        new = requests.append_messages(request, self._limits)
        state = await self._commands.add(
            scoped_id(request.session_id), new, may_move=routing.may_move()
        )
        return pb.AppendMessagesResponse(session=convert.session(state))

    async def ForkSession(  # noqa: D102, N802
        self, request: pb.ForkSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.ForkSessionResponse:
        new = requests.fork_session(request, self._limits)
        await self._check_model(new.parent_id)
        state = await self._commands.fork(new)
        return pb.ForkSessionResponse(session=convert.session(state))

    async def _check_model(self, session_id: str) -> None:
        """Raises PermissionDenied if the session's model is no longer allowed to its tenant."""
        limits = self._limits.limits_of(caller.tenant())
        if limits.models is None:
            return
        with contextlib.suppress(SessionNotFound, SessionEvicted, SessionExpired):
            state = await self._sessions.get(session_id)
            if state.session.model:
                allowances.check_model(state.session.model, limits)

    async def CompactSession(  # noqa: D102, N802
        self, request: pb.CompactSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.CompactSessionResponse:
        session_id = requests.session_id(request, self._limits)
        outcome = await self._compactions.compact(session_id, dry_run=request.dry_run)
        return convert.compaction(outcome)

    async def EndSession(  # noqa: D102, N802
        self, request: pb.EndSessionRequest, context: ServicerContext[Any, Any]
    ) -> pb.EndSessionResponse:
        session_id = requests.session_id(request, self._limits)
        await self._commands.end(session_id, allow_missing=request.allow_missing)
        return pb.EndSessionResponse()

    async def ListModels(  # noqa: D102, N802
        self, request: pb.ListModelsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        allowed = self._limits.limits_of(caller.tenant()).models
        models = [each for each in await self._engine.models() if is_allowed(each, allowed)]
        return pb.ListModelsResponse(models=models, default_model=self._engine.model)

    async def GetServerInfo(  # noqa: D102, N802
        self, request: pb.GetServerInfoRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetServerInfoResponse:
        return await self._info.of(caller.tenant())

    async def GetSessionMetrics(  # noqa: D102, N802
        self, request: pb.GetSessionMetricsRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetSessionMetricsResponse:
        identity = caller.current.get()
        if identity is None:
            counts, statistics = await self._sessions.counts(), self._statistics.all
        else:
            counts = await self._sessions.counts(identity.tenant)
            statistics = self._statistics.of(identity.tenant)
        return pb.GetSessionMetricsResponse(metrics=convert.metrics(counts, statistics))

    # Streaming RPCs write to the context: a generator would add a layer to every event.

    async def Complete(  # type: ignore[override]  # noqa: D102, N802
        self, request: pb.CompleteRequest, context: ServicerContext[Any, pb.CompleteResponse]
    ) -> None:
        completion_request = requests.complete(request, self._limits)
        if routing.batch_item.get():
            completion = await self._batches.start(completion_request)
        else:
            completion = self._completions.start(completion_request)
        is_out_of_time = partial(status.is_too_late, context)
        async with aclosing(completion.events(is_out_of_time=is_out_of_time)) as events:
            async for event in events:
                if isinstance(event.event, Finished):
                    for part in message_parts.before(event):
                        await context.write(pb.CompleteResponse(event=part))
                response = pb.CompleteResponse()
                convert.event(event, response.event)
                await context.write(response)
                if event.sequence == _FIRST_ANSWER:
                    reservation.give_back()

    async def ResumeCompletion(  # type: ignore[override]  # noqa: D102, N802
        self,
        request: pb.ResumeCompletionRequest,
        context: ServicerContext[Any, pb.ResumeCompletionResponse],
    ) -> None:
        ref = requests.completion_ref(request, self._limits)
        is_out_of_time = partial(status.is_too_late, context)
        events = self._completions.resume(
            ref, request.after_sequence, is_out_of_time=is_out_of_time
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event.event, Finished):
                    for part in message_parts.before(event):
                        await context.write(pb.ResumeCompletionResponse(event=part))
                response = pb.ResumeCompletionResponse()
                convert.event(event, response.event)
                await context.write(response)

    async def BatchComplete(  # type: ignore[override]  # noqa: D102, N802
        self,
        request: pb.BatchCompleteRequest,
        context: ServicerContext[Any, pb.BatchCompleteResponse],
    ) -> None:
        with self._completions.quotas.batch_call(caller.tenant()):
            items = await requests.batch_complete(request, self._limits)
            reservation.give_back()  # the prompts of a batch are built one by one
            router = batch_items.current.get()
            outcomes = self._batches.run(items, request.max_concurrency, router)
            async with aclosing(outcomes) as events:
                async for event in events:
                    if isinstance(event, BatchSummary):
                        response = convert.batch_summary(event)
                    else:
                        if event.finished and convert.is_too_large(event.finished.message):
                            for part in message_parts.parts(event.finished.message):
                                await context.write(pb.BatchCompleteResponse(message_part=part))
                        response = _batch_result(event)
                    await context.write(response)

    async def CancelCompletion(  # noqa: D102, N802
        self, request: pb.CancelCompletionRequest, context: ServicerContext[Any, Any]
    ) -> pb.CancelCompletionResponse:
        ref = requests.completion_ref(request, self._limits)
        await self._completions.cancel(ref, keep_partial=request.keep_partial)
        return pb.CancelCompletionResponse()


def _batch_result(outcome: BatchOutcome) -> pb.BatchCompleteResponse:
    """Converts the outcome of an item. A bug in that fails the item, and not the batch."""
    try:
        error = outcome.error and status.to_status(outcome.error)[1]
        return convert.batch_result(outcome, error)
    except Exception as error:  # noqa: BLE001  # even a bug fails only its own item
        _log.exception("the outcome of an item of BatchComplete cannot be sent")
        failed = replace(outcome, finished=None, error=error)
        return convert.batch_result(failed, status.to_status(error)[1])
