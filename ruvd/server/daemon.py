"""The daemon's lifecycle: start, listen, health, signals, drain, stop.

`ruvd.server.composition` and its neighbours build the parts. They start in this order: signal
handlers (the first process of a container has no default ones), store, sockets, engine (in the
background). On SIGTERM the daemon refuses new turns, lets running turns end within `drain_seconds`,
cancels the rest, and stops the servers, the engine and the store.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from ruvd.config.loader import Settings
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import StoreStateChanged
from ruvd.core.ports.store import Store, StoreLocked
from ruvd.core.statistics import Statistics
from ruvd.rpc.health import Health, Readiness
from ruvd.server import (
    admin_socket,
    log_observer,
    periodic,
    runtime_tuning,
    store_diagnosis,
)
from ruvd.server.administration import Administration, build_admin_service
from ruvd.server.auditing import build_audit
from ruvd.server.background import BackgroundTasks
from ruvd.server.composition import (
    build_core,
    build_memory_budget,
    build_monitoring,
    build_tenant_statistics,
)
from ruvd.server.directories import report_loose_directories
from ruvd.server.encryption import build_encryption
from ruvd.server.grpc_servers import GrpcServers
from ruvd.server.http_doors import open_doors
from ruvd.server.log_level import LogLevelControl
from ruvd.server.named_engines import LoadSettings, build_engines
from ruvd.server.observers import Observers
from ruvd.server.peer_composition import build_peers
from ruvd.server.security import build_security, report_unlimited_tenants
from ruvd.server.store_composition import build_store, replicas_of, store_is_newer
from ruvd.server.system_clock import SystemClock, read_boot_id
from ruvd.server.unix_socket import AddressUnavailable, SocketClaim, socket_mode

if TYPE_CHECKING:
    from ruvd.rpc.tls import ServerTls
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")
_VERSION = version("ruvd")
# Time at the end for streams to be flushed, and for idle health watchers to notice.
_FLUSH_SECONDS = 1.0
_FOR_GROUP = 0o660
_INTERRUPTED = 130
_TERMINATED = 143


class Daemon:
    """A ruvd daemon. `run` serves and returns the exit code; `stop` ends it from its event loop.

    `load_settings` reads the settings again, for a daemon that may be told to do that.
    """

    def __init__(self, settings: Settings, load_settings: LoadSettings | None = None) -> None:
        self._settings = settings
        self._load_settings = load_settings
        self._stop = asyncio.Event()
        self.addresses: list[str] = []
        self.started = asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal.

        Raises StoreLocked, AddressUnavailable and FilesInvalid if it cannot start.
        """
        settings = self._settings
        health_service = Health(_VERSION)
        readiness = Readiness(health_service)
        administration = Administration(_VERSION, readiness)
        log_level = LogLevelControl(settings.log_level)
        self._handle_signals(administration, log_level)
        runtime_tuning.untrack_async_generators()
        statistics = Statistics()
        observers = Observers(log_observer.observe, statistics, readiness)
        clock = SystemClock(await asyncio.to_thread(read_boot_id))
        background = BackgroundTasks(clock, observers, give_up=readiness.give_up)
        # The engine ends its own tasks when it closes, after those that use it.
        engine_tasks = BackgroundTasks(clock, observers, give_up=readiness.give_up)
        # The store ends its own tasks when it closes, which is last.
        store_tasks = BackgroundTasks(clock, observers, give_up=readiness.give_up)
        async with AsyncExitStack() as stack:
            audit = await asyncio.to_thread(build_audit, settings, observers)
            stack.push_async_callback(audit.close)
            audit.start(background, observers)
            stack.push_async_callback(store_tasks.close)
            # In a thread, because importing an adapter reads files.
            monitoring = await asyncio.to_thread(build_monitoring, settings, statistics)
            encryption = await asyncio.to_thread(build_encryption, settings)
            store = await asyncio.to_thread(
                build_store, settings, clock, observers, store_tasks.start, encryption.keys
            )
            replicas = replicas_of(store)
            if monitoring:
                observers.add(monitoring)
                stack.push_async_callback(monitoring.close)
                store = monitoring.store(store, settings.store.partition(":")[0])
            stack.push_async_callback(store.close)
            if await self._open_store(store):
                for observe in (statistics, readiness):
                    observe(StoreStateChanged(up=True, detail=settings.store))
            start_task, secrets = engine_tasks.start, administration.secrets
            engine, named_engines = await asyncio.to_thread(
                build_engines, settings, observers, start_task, secrets, encryption.keys, monitoring
            )
            stack.push_async_callback(engine_tasks.close)
            stack.push_async_callback(engine.close)
            stack.push_async_callback(background.close)
            by_tenant = build_tenant_statistics(settings, statistics, observers)
            memory = await asyncio.to_thread(build_memory_budget, settings, readiness)
            core = build_core(
                settings, clock, store, engine, observers, by_tenant, memory, replicas
            )
            named_engines.attach(core.completions.engines, self._load_settings)
            administration.settings = named_engines
            background.start("reading of settings", named_engines.run)
            memory.shed = core.completions.shed
            core.quota_gate.limit_memory(memory.limit_bytes)
            if prefix_cache := engine.prefix_cache:
                save = partial(background.start, "saving of KV states", prefix_cache.save)
                administration.on_drain = save
            periodic.start_cache_tasks(background, engine, core, observers)
            health_service.running = lambda: core.completions.running
            security = await asyncio.to_thread(build_security, settings)
            security.watched += encryption.files
            peers = await asyncio.to_thread(
                build_peers, settings, replicas, core, observers, monitoring
            )
            security.watched += peers.watched
            stack.push_async_callback(peers.close)
            secrets += security.secrets
            admin = build_admin_service(settings, core, administration, log_level, memory)

            factory = GrpcServers(
                settings, monitoring, memory, security, core, admin, health_service, audit,
                peers.router,
            )  # fmt: skip
            servers = await self._listen(factory, security.tls, stack)
            servers += await admin_socket.listen(factory, settings, stack)
            await asyncio.to_thread(report_loose_directories, settings)
            report_unlimited_tenants(settings)
            servers += self._listen_for_health(factory)
            servers += peers.listen(factory)
            doors = await open_doors(factory, administration, stack)
            if monitoring:
                monitoring.watch(core.sessions, core.completions)
                await self._listen_for_metrics(monitoring)
            readiness.serve()
            for each in servers:
                await each.start()
            await peers.announce()
            await engine.start()
            doors.start(background)
            background.start("memory", memory.watch)
            background.start("diagnosis of the store", partial(store_diagnosis.report, settings))
            periodic.start_session_tasks(
                background, core, clock, readiness, settings.sweep_interval_seconds
            )
            security.start(background, audit.record_reload)
            for address in self.addresses:
                _log.info("listening", extra={"address": address})
            self.started.set()
            await self._stop.wait()
            _log.info("draining", extra={"running": core.completions.running})
            readiness.stop()
            seconds = settings.drain_seconds
            await asyncio.gather(core.completions.drain(seconds), peers.drain(seconds))
            ends = [each.stop(_FLUSH_SECONDS) for each in servers]
            await asyncio.gather(*ends, doors.close(_FLUSH_SECONDS))
            if monitoring:  # the last export counts sessions, so it comes before the store closes
                await monitoring.close()
        _log.info("stopped")
        return 0

    def stop(self) -> None:
        """Begins to drain; `run` returns afterwards."""
        self._stop.set()

    async def _open_store(self, store: Store) -> bool:
        """Opens the store; returns False if it is down, which is observed and may pass.

        Raises StoreLocked for a store in use and for one that a newer ruvd has written.
        """
        try:
            await store.open()
        except StoreUnavailable as error:
            if await asyncio.to_thread(store_is_newer, self._settings):
                raise StoreLocked(str(error)) from error
            return False
        return True

    async def _listen(
        self,
        factory: GrpcServers,
        tls: "ServerTls | None",
        stack: AsyncExitStack,
    ) -> list[grpc.aio.Server]:
        """Returns the servers: one for all addresses, and one for each tenant and role of sockets.

        gRPC does not say at which address a call arrived, so such sockets need their own servers.
        """
        servers: dict[tuple[str, str], grpc.aio.Server] = {}
        for listener in self._settings.listeners:
            key, address = (listener.tenant, listener.role), listener.name
            server = servers[key] = servers.get(key) or factory.for_listener(listener)
            try:
                if address.startswith("unix:"):
                    path = Path(address.removeprefix("unix:"))
                    claim = await asyncio.to_thread(SocketClaim, path)
                    stack.push_async_callback(asyncio.to_thread, claim.release)
                    with socket_mode(_FOR_GROUP):
                        server.add_insecure_port(f"unix:{claim.path}")
                    self.addresses.append(address)
                else:
                    if tls:
                        port = server.add_secure_port(address, tls.credentials())
                    else:
                        port = server.add_insecure_port(address)
                    self.addresses.append(f"{address.rpartition(':')[0]}:{port}")
            except (RuntimeError, OSError) as error:
                raise _cannot_listen(address, error) from None
        return list(servers.values())

    def _listen_for_health(self, factory: GrpcServers) -> list[grpc.aio.Server]:
        """Returns the server of the health port, or nothing if there is none."""
        address = self._settings.health_listen
        if not address:
            return []
        server = factory.for_health()
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise _cannot_listen(address, error) from None
        address = f"{address.rpartition(':')[0]}:{port}"
        _log.info("serving health", extra={"address": address})
        return [server]

    async def _listen_for_metrics(self, monitoring: "Monitoring") -> None:
        """Starts the Prometheus endpoint, if the settings name an address for it."""
        address = self._settings.metrics_listen
        if not address:
            return
        try:
            address = await monitoring.listen(address)
        except OSError as error:
            raise _cannot_listen(address, error) from None
        if address:
            _log.info("serving metrics", extra={"address": address})

    def _handle_signals(self, administration: Administration, log_level: LogLevelControl) -> None:
        """Installs the signal handlers, also where SIGINT was ignored at the start.

        Shells ignore it for background commands, but a signal that is sent to the daemon by its
        process id means the daemon.
        """
        loop = asyncio.get_running_loop()

        def stop(exit_code: int) -> None:
            if self._stop.is_set():
                _log.warning("second signal: stopping at once")
                os._exit(exit_code)  # the engine's child and the store's lock end with it
            self.stop()

        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: stop(_TERMINATED),
            signal.SIGINT: lambda: stop(_INTERRUPTED),
            signal.SIGHUP: administration.hang_up,
            signal.SIGUSR1: administration.drain,
            signal.SIGUSR2: log_level.toggle_debug,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)


def _cannot_listen(address: str, error: Exception) -> AddressUnavailable:
    return AddressUnavailable(f"cannot listen at {address}: {error}")
