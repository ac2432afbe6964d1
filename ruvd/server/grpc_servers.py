"""The gRPC servers: which services each of them has, and who may call it.

They have no addresses yet.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ruvd.admin.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from ruvd.config.identities import NamedIdentity
from ruvd.config.loader import Settings
from ruvd.rpc.admin.caller import SocketOwner
from ruvd.rpc.admin.service import SERVICE as ADMIN_SERVICE
from ruvd.rpc.admin.service import AdminService, refuse_all
from ruvd.rpc.health import SERVICE, Health
from ruvd.rpc.interceptor import RpcInterceptor
from ruvd.rpc.ports import CallerCheck, CallRouter
from ruvd.server import runtime_tuning
from ruvd.server.auditing import Audit
from ruvd.server.composition import Core
from ruvd.server.memory_budget import MemoryBudget
from ruvd.server.security import Security
from ruvd.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server

if TYPE_CHECKING:
    from ruvd.telemetry.setup import Monitoring


@dataclass(frozen=True, slots=True)
class GrpcServers:
    """Builds the servers of one daemon."""

    settings: Settings
    monitoring: "Monitoring | None"
    memory: MemoryBudget
    security: Security
    core: Core
    admin: AdminService
    health: Health
    audit: Audit
    router: CallRouter | None = None

    def for_listener(self, listener: NamedIdentity) -> grpc.aio.Server:
        """Returns a server of the whole API.

        It refuses administration if the listener asks for no identity.
        """
        callers = self.security.callers(listener)
        server = self._server(callers)
        add_SessionServiceServicer_to_server(self.core.service, server)
        if callers is None:
            refuse_all(server)
            self._add_health_and_reflection(server, SERVICE)
        else:
            add_AdminServiceServicer_to_server(self.admin, server)
            self._add_health_and_reflection(server, SERVICE, ADMIN_SERVICE)
        return server

    def for_admin_socket(self) -> grpc.aio.Server:
        """Returns a server of administration alone, for all users who can open the socket."""
        server = self._server(SocketOwner())
        add_AdminServiceServicer_to_server(self.admin, server)
        self._add_health_and_reflection(server, ADMIN_SERVICE)
        return server

    def for_peers(self, callers: CallerCheck) -> grpc.aio.Server:
        """Returns a server of the sessions for other replicas. One connection has all calls."""
        options = runtime_tuning.peer_server_options(self.settings.max_request_bytes)
        server = self._server(callers, options)
        add_SessionServiceServicer_to_server(self.core.service, server)
        return server

    def for_health(self) -> grpc.aio.Server:
        """Returns a server of health alone."""
        server = grpc.aio.server(options=runtime_tuning.HEALTH_SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        return server

    def _server(
        self, callers: CallerCheck | None, options: runtime_tuning.Options | None = None
    ) -> grpc.aio.Server:
        by_tcp = any(not address.startswith("unix:") for address in self.settings.listen)
        interceptor = RpcInterceptor(
            self.settings.max_request_bytes,
            self.memory,
            self.monitoring.rpcs if self.monitoring else None,
            peers=by_tcp,
            callers=callers,
            quotas=self.core.quota_gate,
            audit=self.audit.calls,
            router=self.router,
        )
        options = options or runtime_tuning.server_options(
            self.settings.max_request_bytes, self.settings.max_connection_calls
        )
        server = grpc.aio.server(interceptors=(interceptor,), options=options)
        runtime_tuning.skip_method_registration(server)
        return server

    def _add_health_and_reflection(self, server: grpc.aio.Server, *services: str) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
