"""The servicer of `ruvd.admin.v1.AdminService`: convert, call once, convert back.

Errors pass through to the interceptor.
"""

import asyncio
import contextlib
from contextlib import aclosing
from typing import Any

import grpc
from grpc.aio import ServicerContext

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.admin.v1 import admin_service_pb2_grpc as pb_grpc
from ruvd.core.completions.activity import Activity, Phase, RunningCompletion
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.completions.tenant_list import TenantList, TenantState
from ruvd.core.errors import PermissionDenied
from ruvd.core.ports.secrets import SecretOutcome
from ruvd.core.tenants import own, tenant_of
from ruvd.rpc import convert, pages
from ruvd.rpc.admin import requests
from ruvd.rpc.admin.ports import BackupFile, Backups, EngineChange, LogLevel, Process
from ruvd.rpc.validation import RequestLimits

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"].full_name
_LEVELS = {name: level for level, name in requests.LEVELS.items()}
_OUTCOMES = {
    SecretOutcome.UNCHANGED: pb.ReloadedSecret.OUTCOME_UNCHANGED,
    SecretOutcome.TAKEN: pb.ReloadedSecret.OUTCOME_TAKEN,
    SecretOutcome.REFUSED: pb.ReloadedSecret.OUTCOME_REFUSED,
}
_CHANGES = {
    EngineChange.UNCHANGED: pb.ReloadedEngine.OUTCOME_UNCHANGED,
    EngineChange.ADDED: pb.ReloadedEngine.OUTCOME_ADDED,
    EngineChange.CHANGED: pb.ReloadedEngine.OUTCOME_CHANGED,
    EngineChange.REMOVED: pb.ReloadedEngine.OUTCOME_REMOVED,
}
_PHASES = {
    Phase.WAITING: pb.RunningCompletion.PHASE_WAITING,
    Phase.PROMPT: pb.RunningCompletion.PHASE_PROMPT,
    Phase.ANSWER: pb.RunningCompletion.PHASE_ANSWER,
    Phase.COMMIT: pb.RunningCompletion.PHASE_COMMIT,
}
_Context = ServicerContext[Any, Any]


class AdminService(pb_grpc.AdminServiceServicer):
    """The servicer, with one method per RPC."""

    def __init__(
        self,
        process: Process,
        completions: CompletionRegistry,
        activity: Activity,
        tenants: TenantList,
        log_level: LogLevel,
        backups: Backups,
        limits: RequestLimits,
    ) -> None:
        self._limits = limits
        self._process = process
        self._completions = completions
        self._activity = activity
        self._tenants = tenants
        self._log_level = log_level
        self._backups = backups

    async def GetStatus(  # noqa: D102, N802  # the proto documents and names all RPCs
        self, request: pb.GetStatusRequest, context: _Context
    ) -> pb.GetStatusResponse:
        requests.nothing(request, self._limits)
        return pb.GetStatusResponse(status=self._status())

    async def Drain(  # noqa: D102, N802
        self, request: pb.DrainRequest, context: _Context
    ) -> pb.DrainResponse:
        seconds = requests.drain(request, self._limits)
        self._process.drain()
        if seconds is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._completions.wait_idle()
        return pb.DrainResponse(status=self._status())

    async def Undrain(  # noqa: D102, N802
        self, request: pb.UndrainRequest, context: _Context
    ) -> pb.UndrainResponse:
        requests.nothing(request, self._limits)
        self._process.undrain()
        return pb.UndrainResponse(status=self._status())

    async def SetLogLevel(  # noqa: D102, N802
        self, request: pb.SetLogLevelRequest, context: _Context
    ) -> pb.SetLogLevelResponse:
        change = requests.set_log_level(request, self._limits)
        self._log_level.set(change.level, change.seconds)
        return pb.SetLogLevelResponse(status=self._status())

    async def Backup(  # type: ignore[override]  # noqa: D102, N802
        self, request: pb.BackupRequest, context: ServicerContext[Any, pb.BackupResponse]
    ) -> None:
        name = requests.backup(request, self._limits)
        async with aclosing(self._backups.make(name)) as events:
            async for event in events:
                response = pb.BackupResponse()
                if isinstance(event, BackupFile):
                    response.file.path = event.path
                    response.file.size_bytes = event.size_bytes
                else:
                    response.progress.copied_pages = event.copied
                    response.progress.total_pages = event.total
                await context.write(response)

    async def ListTenants(  # noqa: D102, N802
        self, request: pb.ListTenantsRequest, context: _Context
    ) -> pb.ListTenantsResponse:
        page = requests.list_tenants(request, self._limits)
        tenants, has_more = await self._tenants.page(page.after, page.limit)
        return pb.ListTenantsResponse(
            tenants=[_tenant(each) for each in tenants],
            next_page_token=pages.token(tenants[-1].counts.tenant) if has_more else "",
        )

    async def ListCompletions(  # noqa: D102, N802
        self, request: pb.ListCompletionsRequest, context: _Context
    ) -> pb.ListCompletionsResponse:
        limit = requests.list_completions(request, self._limits)
        return pb.ListCompletionsResponse(
            completions=[_completion(each) for each in self._activity.running(limit)],
            total_count=self._activity.total,
        )

    async def ReloadSecrets(  # noqa: D102, N802
        self, request: pb.ReloadSecretsRequest, context: _Context
    ) -> pb.ReloadSecretsResponse:
        requests.nothing(request, self._limits)
        response = pb.ReloadSecretsResponse()
        for each in await self._process.reload_secrets():
            response.secrets.add(
                setting=each.setting,
                location=each.location,
                outcome=_OUTCOMES[each.outcome],
                error=each.error,
            )
        return response

    async def ReloadSettings(  # noqa: D102, N802
        self, request: pb.ReloadSettingsRequest, context: _Context
    ) -> pb.ReloadSettingsResponse:
        requests.nothing(request, self._limits)
        result = await self._process.reload_settings()
        response = pb.ReloadSettingsResponse(
            errors=result.errors, restart_needed=result.restart_needed
        )
        for name, change in result.engines.items():
            response.engines.add(name=name, outcome=_CHANGES[change])
        return response

    def _status(self) -> pb.Status:
        process, log_level = self._process, self._log_level
        waiting, memory = self._activity.waiting, process.memory
        status = pb.Status(
            version=process.version,
            ready=process.ready,
            draining=process.draining,
            stopping=process.stopping,
            running_completions=self._completions.running,
            log_level=_LEVELS[log_level.current],
            engine_up=process.engine.up,
            store_up=process.store.up,
            waiting_for_session=waiting.session,
            waiting_for_engine=waiting.engine,
            waiting_batch_items=waiting.batch,
            memory_bytes=memory.resident_bytes,
            memory_limit_bytes=memory.limit_bytes,
        )
        if log_level.expires is not None:
            status.log_level_expire_time.FromDatetime(log_level.expires)
        return status


def _tenant(state: TenantState) -> pb.Tenant:
    counts = state.counts
    return pb.Tenant(
        name=counts.tenant,
        session_count=counts.sessions,
        active_session_count=counts.active,
        message_count=counts.messages,
        history_bytes=counts.history_bytes,
        running_completions=state.running,
    )


def _completion(each: RunningCompletion) -> pb.RunningCompletion:
    return pb.RunningCompletion(
        completion_id=own(each.completion_id),
        session_id=own(each.session_id),
        tenant=tenant_of(each.completion_id),
        model=each.model,
        batch_item=each.batch,
        phase=_PHASES[each.phase],
        elapsed=convert.duration(each.seconds),
        queue=convert.duration(each.queue_seconds),
        time_to_first_token=convert.duration(each.first_output_seconds),
        sent_messages=each.sent_messages,
        output_pieces=each.pieces,
        reader_count=each.readers,
    )


def refuse_all(server: grpc.aio.Server) -> None:
    """Makes a server that asks for no identity refuse every RPC of the service.

    Otherwise every caller of that server would be an administrator.
    """

    async def refuse(request: object, context: _Context) -> None:
        raise PermissionDenied(
            "administration needs an identity with the role admin, and this daemon asks for no"
            " identity here: call it at its admin socket (admin_listen)"
        )

    handlers: dict[str, Any] = {
        method.name: grpc.unary_stream_rpc_method_handler(refuse)
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler(refuse)
        for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
