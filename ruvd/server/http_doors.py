"""The HTTP addresses of the daemon: their sockets, who may call, and what is served there.

Libraries are imported only for an address that the settings name.
"""

import asyncio
import logging
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ruvd.config.addresses import is_loopback
from ruvd.config.identities import NamedIdentity
from ruvd.config.loader import Settings
from ruvd.core.ports.background import Run, StartTask
from ruvd.rpc.watched_files import FilesInvalid
from ruvd.server.administration import Administration
from ruvd.server.background import BackgroundTasks
from ruvd.server.console_composition import build_console
from ruvd.server.grpc_servers import GrpcServers
from ruvd.server.security import Security
from ruvd.server.unix_socket import AddressUnavailable, SocketClaim, socket_mode

if TYPE_CHECKING:
    from ruvd.http.listener import HttpListener
    from ruvd.http.scopes import ASGIApp
    from ruvd.http.tls import ListenerTls

_FOR_GROUP = 0o660
# A client that has vanished without a word is noticed after about a minute and a half, and one that
# takes nothing for five minutes is left.
_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 300_000,
}

_log = logging.getLogger("ruvd.daemon")


class HttpDoors:
    """The open HTTP listeners of a daemon."""

    def __init__(self) -> None:
        self._listeners: dict[str, HttpListener] = {}
        self._background: BackgroundTasks | None = None

    def add(self, name: str, listener: "HttpListener") -> None:
        """Adds a listener, whose task has this name."""
        self._listeners[name] = listener

    def start(self, background: BackgroundTasks) -> None:
        """Accepts connections from now on."""
        self._background = background
        for name, listener in self._listeners.items():
            background.start(name, listener.run)

    def start_task(self, name: str, run: Run) -> asyncio.Task[None]:
        """Starts a supervised task for a call that is being handled: a StartTask."""
        if self._background is None:
            raise RuntimeError("no call is handled before the doors are open")
        return self._background.start(name, run)

    async def close(self, grace_seconds: float) -> None:
        """Ends all requests, the last ones after the grace period."""
        await asyncio.gather(*(each.close(grace_seconds) for each in self._listeners.values()))


async def open_doors(
    servers: GrpcServers, process: Administration, stack: AsyncExitStack
) -> HttpDoors:
    """Binds the addresses that the settings name.

    `servers` has the parts of the daemon, whose `process` the console shows. Raises
    AddressUnavailable and FilesInvalid.
    """
    doors, settings = HttpDoors(), servers.settings
    for address in settings.http_listeners:
        app = await asyncio.to_thread(_build_openai_api, servers, address, doors.start_task)
        doors.add("HTTP", await listen(app, address, servers, stack))
    if settings.console_listen:
        address = NamedIdentity(settings.console_listen, "", "")
        app = await asyncio.to_thread(build_console, servers, process, address)
        listener = await listen(app, address, servers, stack, serves="serving the console")
        doors.add("console", listener)
    return doors


def _build_openai_api(
    servers: GrpcServers, address: NamedIdentity, start_task: StartTask
) -> "ASGIApp":
    from ruvd.http.openai.application import build
    from ruvd.http.openai.endpoint import Gate
    from ruvd.http.openai.parts import Parts

    core = servers.core
    parts = Parts(
        core.sessions,
        core.commands,
        core.completions,
        core.batches,
        core.engine,
        core.limits,
        core.policy,
        servers.memory,
    )
    gate = Gate(
        servers.security.callers(address),
        servers.memory,
        core.quota_gate,
        servers.audit.calls,
        servers.settings.max_request_bytes,
    )
    return build(parts, gate, start_task)


async def listen(
    app: "ASGIApp",
    address: NamedIdentity,
    servers: GrpcServers,
    stack: AsyncExitStack,
    *,
    serves: str = "serving HTTP",
) -> "HttpListener":
    """Returns the listener of an application at an address, which is bound but not served yet.

    TCP addresses have the daemon's TLS. Requests of foreign web pages are refused, and all are
    measured if telemetry is on. `serves` is what the log says. Raises AddressUnavailable and
    FilesInvalid.
    """
    from ruvd.http.browser_guard import BrowserGuard
    from ruvd.http.listener import HttpListener
    from ruvd.http.measurement import Measured

    settings, security = servers.settings, servers.security
    by_tcp = not address.name.startswith("unix:")
    tls = await asyncio.to_thread(_build_tls, settings, security) if by_tcp else None
    try:
        if by_tcp:
            bound = await asyncio.to_thread(_bind, address.name)
        else:
            claim = await asyncio.to_thread(SocketClaim, Path(address.name.removeprefix("unix:")))
            stack.push_async_callback(asyncio.to_thread, claim.release)
            bound = _bind_unix(claim.path)
        bound.listen()  # connections wait until the listener runs
    except OSError as error:
        raise AddressUnavailable(f"cannot listen at {address.name}: {error}") from None
    stack.callback(bound.close)
    is_open = by_tcp and security.callers(address) is None and is_loopback(address.name)
    shown = address.name
    if by_tcp:
        shown = f"{address.name.rpartition(':')[0]}:{bound.getsockname()[1]}"
    _log.info(serves, extra={"address": shown, "tls": tls is not None})
    guarded: ASGIApp = BrowserGuard(app, loopback_only=is_open)
    if servers.monitoring:
        guarded = Measured(guarded, servers.monitoring.http)
    return HttpListener(guarded, bound, tls)


def _build_tls(settings: Settings, security: Security) -> "ListenerTls | None":
    if security.tls is None or settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    from ruvd.http.tls import ListenerTls

    try:
        tls = ListenerTls(settings.tls_cert_file, settings.tls_key_file, settings.client_ca_file)
    except ValueError as error:
        raise FilesInvalid(str(error)) from None
    security.tls.followers.append(tls.load)
    return tls


def _bind(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family, kind, number, _, place = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, number)
    try:
        bound.settimeout(0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            bound.setsockopt(socket.IPPROTO_TCP, option, value)
        bound.bind(place)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.settimeout(0)
    with socket_mode(_FOR_GROUP):
        bound.bind(str(path))
    return bound
