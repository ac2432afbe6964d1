"""Builds the console from the parts of the daemon. Its libraries are imported only then."""

from typing import TYPE_CHECKING

from ruvd.config.identities import NamedIdentity
from ruvd.server.administration import Administration
from ruvd.server.grpc_servers import GrpcServers

if TYPE_CHECKING:
    from ruvd.http.scopes import ASGIApp


def build_console(
    servers: GrpcServers, process: Administration, address: NamedIdentity
) -> "ASGIApp":
    """Returns the console's application, for callers at an address. Reads files."""
    from ruvd.http.console.app import build
    from ruvd.http.console.gate import Gate
    from ruvd.http.console.sources import Sources

    core = servers.core
    sources = Sources(
        core.sessions,
        core.turn_pages,
        core.activity,
        core.statistics,
        process,
        core.engine,
        core.clock,
    )
    gate = Gate(servers.security.callers(address), servers.audit.calls, servers.memory.check)
    return build(sources, gate)
