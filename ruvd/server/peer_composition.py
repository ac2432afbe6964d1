"""Builds and runs the part of the daemon that calls other replicas and is called by them.

Libraries are imported only with `peer_listen`.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import Observer
from ruvd.core.ports.replicas import Replicas
from ruvd.rpc.watched_files import WatchedFiles
from ruvd.server.composition import Core
from ruvd.server.unix_socket import AddressUnavailable

if TYPE_CHECKING:
    import grpc

    from ruvd.rpc.peers.channels import PeerChannels
    from ruvd.rpc.peers.router import Router
    from ruvd.rpc.peers.tls import PeerTls
    from ruvd.server.grpc_servers import GrpcServers
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")


@dataclass(slots=True)
class Peers:
    """The router and what it needs; without `peer_listen` there is none, and nothing happens."""

    router: "Router | None" = None
    watched: list[WatchedFiles] = field(default_factory=list)
    _running: "_Running | None" = None

    def listen(self, factory: "GrpcServers") -> "list[grpc.aio.Server]":
        """Returns the server for other replicas, if there is one. Raises AddressUnavailable."""
        return [self._running.listen(factory)] if self._running else []

    async def announce(self) -> None:
        """Tells the other replicas the address of this one."""
        if self._running:
            with contextlib.suppress(StoreUnavailable):  # observed; the next renewal tells them
                await self._running.replicas.announce(self._running.address)

    async def drain(self, seconds: float) -> None:
        """Waits for the calls that are being forwarded, for as long as running turns may take."""
        if self.router:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.router.wait_idle()

    async def close(self) -> None:
        """Closes the connections to other replicas."""
        if self._running:
            await self._running.channels.close()


@dataclass(slots=True)
class _Running:
    """The parts of a replica with `peer_listen`; `address` is set once it listens."""

    settings: Settings
    replicas: Replicas
    tls: "PeerTls"
    channels: "PeerChannels"
    address: str = ""

    def listen(self, factory: "GrpcServers") -> "grpc.aio.Server":
        from ruvd.rpc.peers.callers import PeerCallers

        settings = self.settings
        callers = PeerCallers(settings.peer_tls_name, has_identity=settings.has_identity)
        server = factory.for_peers(callers)
        try:
            port = server.add_secure_port(settings.peer_listen, self.tls.credentials())
        except RuntimeError as error:
            raise AddressUnavailable(f"cannot listen at {settings.peer_listen}: {error}") from None
        host = settings.peer_listen.rpartition(":")[0]
        self.address = settings.peer_address or f"{host}:{port}"
        _log.info(
            "listening for replicas",
            extra={"address": f"{host}:{port}", "peer_address": self.address},
        )
        return server


def build_peers(
    settings: Settings,
    replicas: Replicas | None,
    core: Core,
    observer: Observer,
    monitoring: "Monitoring | None",
) -> Peers:
    """Builds the router, if the settings ask for it.

    Raises FilesInvalid if certificates cannot be used.
    """
    cert, key, ca = (
        settings.peer_tls_cert_file,
        settings.peer_tls_key_file,
        settings.peer_tls_ca_file,
    )
    if replicas is None or not settings.peer_listen or not (cert and key and ca):
        return Peers()
    from ruvd.rpc.peers.channels import PeerChannels
    from ruvd.rpc.peers.directory import Directory
    from ruvd.rpc.peers.forwarding import Forwarding
    from ruvd.rpc.peers.location import Location
    from ruvd.rpc.peers.router import Router
    from ruvd.rpc.peers.tls import PeerTls

    if settings.engine == "llama" and settings.peer_prefers_last_owner:
        replicas.prefer_last_owner()
    tls = PeerTls(cert, key, ca)
    channels = PeerChannels(tls, settings.peer_tls_name, settings.store_lease_seconds)
    location = Location(replicas, Directory(replicas), core.sessions, core.completions)
    forwarding = Forwarding(channels, observer, monitoring.rpcs if monitoring else None)
    router = Router(replicas, location, forwarding, settings.max_inflight)
    return Peers(router, [tls.files], _Running(settings, replicas, tls, channels))
