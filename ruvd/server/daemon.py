"""The daemon's life: listen, health, signals, drain, close. What it is made of is
`ruvd.server.composition`'s.

Order on the way up: signals (a first process of a container has no others), store, sockets, engine
(in the background). On the way down: refuse new turns, let running ones end within
`drain_seconds`, cancel the rest, stop the servers, engine, store.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ruvd.config.loader import Settings
from ruvd.core.errors import EngineUnavailable, StoreUnavailable
from ruvd.core.ports.engine import Engine, PrefixCache
from ruvd.core.ports.events import (
    Event,
    Observer,
    SessionCreationAborted,
    SessionGone,
    StoreStateChanged,
)
from ruvd.core.ports.store import Store, StoreLocked
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.rpc.health import SERVICE, Health, Readiness
from ruvd.server import log_observer, logs, runtime_tuning
from ruvd.server.composition import (
    Core,
    build_core,
    build_engine,
    build_health_server,
    build_monitoring,
    build_server,
    build_store,
    store_is_newer,
)
from ruvd.server.unix_socket import AddressTaken, SocketClaim, owner_and_group
from ruvd.v1 import session_service_pb2_grpc

if TYPE_CHECKING:
    from ruvd.telemetry.setup import Monitoring

_log = logging.getLogger("ruvd.daemon")
_VERSION = version("ruvd")
# How long the streams of ended completions get to flush, and idle watchers to notice.
_FLUSH_SECONDS = 1.0
_PROBE_SECONDS = 2.0
_INTERRUPTED = 130
_TERMINATED = 143


class Daemon:
    """One ruvd. `run` returns the exit code; `stop` ends it from within the loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._prefix_cache: PrefixCache | None = None
        self._saving: asyncio.Task[None] | None = None
        self.addresses: list[str] = []
        self.started = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal. Raises StoreLocked and AddressTaken when it cannot begin."""
        settings = self._settings
        answers = Health(_VERSION)
        readiness = Readiness(answers)
        self._handle_signals(readiness)
        runtime_tuning.untrack_async_generators()
        statistics = Statistics()
        observers: list[Observer] = [log_observer.observe, statistics, readiness]

        def observer(event: Event) -> None:
            for each in observers:
                each(event)

        async with AsyncExitStack() as stack:
            # In a thread, because importing an adapter reads files.
            monitoring = await asyncio.to_thread(build_monitoring, settings, statistics)
            store = await asyncio.to_thread(build_store, settings, observer)
            if monitoring:
                observers.append(monitoring)
                stack.push_async_callback(monitoring.close)
                store = monitoring.store(store, settings.store.partition(":")[0])
            stack.push_async_callback(store.close)
            if await self._open(store):
                for tell in (statistics, readiness):
                    tell(StoreStateChanged(up=True, detail=settings.store))
            engine = await asyncio.to_thread(build_engine, settings, observer)
            engine = monitoring.engine(engine) if monitoring else engine
            stack.push_async_callback(engine.close)
            core = build_core(settings, store, engine, observer, statistics)
            self._keep_warm(engine, core, observers, stack)
            answers.running = lambda: core.completions.running
            server = build_server(settings, monitoring)
            session_service_pb2_grpc.add_SessionServiceServicer_to_server(core.service, server)
            health_pb2_grpc.add_HealthServicer_to_server(answers, server)
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            await self._listen(server, stack)
            servers = [server, *self._listen_for_probes(answers)]
            if monitoring:
                monitoring.watch(core.sessions, core.completions)
                await self._show(monitoring)
            readiness.serve()
            for each in servers:
                await each.start()
            await engine.start()
            sweeper = asyncio.create_task(_sweep(core.commands, settings.sweep_interval_seconds))
            stack.callback(sweeper.cancel)
            probe = asyncio.create_task(_probe(core.sessions, readiness))
            stack.callback(probe.cancel)
            for address in self.addresses:
                _log.info("listening", extra={"address": address})
            self.started.set()
            await self._stop.wait()
            _log.info("draining", extra={"running": core.completions.running})
            readiness.stop()
            await core.completions.drain(settings.drain_seconds)
            await asyncio.gather(*(each.stop(_FLUSH_SECONDS) for each in servers))
            if monitoring:  # before the store goes, which it counts with
                await monitoring.close()
        _log.info("stopped")
        return 0

    def stop(self) -> None:
        """Begin to drain, then end."""
        self._stop.set()

    def _keep_warm(
        self,
        engine: Engine,
        core: Core,
        observers: list[Observer],
        stack: AsyncExitStack,
    ) -> None:
        """Let the engine prepare what comes, and forget what has gone."""
        self._prefix_cache = prefix_cache = engine.prefix_cache
        if prefix_cache:
            observers.append(partial(_forget, prefix_cache))
            forgetting = asyncio.create_task(_forget_others(prefix_cache, engine, core.sessions))
            stack.callback(forgetting.cancel)
        if prewarmer := core.prewarmer:
            observers.append(prewarmer)
            preparing = asyncio.create_task(prewarmer.run())
            stack.callback(preparing.cancel)

    def _drain(self, readiness: Readiness) -> None:
        """Readiness off, and what the end may leave no time for is saved."""
        readiness.drain()
        if self._prefix_cache:
            self._saving = asyncio.create_task(self._prefix_cache.save())

    async def _open(self, store: Store) -> bool:
        """Whether the store is up. Most that keeps it down is observed, and may pass."""
        try:
            await store.open()
        except StoreUnavailable as error:
            if await asyncio.to_thread(store_is_newer, self._settings):
                raise StoreLocked(str(error)) from error
            return False
        return True

    async def _listen(self, server: grpc.aio.Server, stack: AsyncExitStack) -> None:
        for address in self._settings.listen:
            try:
                if address.startswith("unix:"):
                    path = Path(address.removeprefix("unix:"))
                    claim = await asyncio.to_thread(SocketClaim, path)
                    stack.push_async_callback(asyncio.to_thread, claim.release)
                    with owner_and_group():
                        server.add_insecure_port(f"unix:{claim.path}")
                    self.addresses.append(address)
                else:
                    port = server.add_insecure_port(address)
                    self.addresses.append(f"{address.rpartition(':')[0]}:{port}")
            except (RuntimeError, OSError) as error:
                raise AddressTaken(f"cannot listen at {address}: {error}") from None

    def _listen_for_probes(self, answers: Health) -> list[grpc.aio.Server]:
        """The server that answers health alone, where it is wanted."""
        address = self._settings.health_listen
        if not address:
            return []
        server = build_health_server()
        health_pb2_grpc.add_HealthServicer_to_server(answers, server)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressTaken(f"cannot listen at {address}: {error}") from None
        address = f"{address.rpartition(':')[0]}:{port}"
        _log.info("serving health", extra={"address": address})
        return [server]

    async def _show(self, monitoring: Monitoring) -> None:
        """Let Prometheus in, where it may."""
        address = self._settings.metrics_listen
        if not address:
            return
        try:
            address = await monitoring.listen(address)
        except OSError as error:
            raise AddressTaken(f"cannot listen at {address}: {error}") from None
        if address:
            _log.info("serving metrics", extra={"address": address})

    def _handle_signals(self, readiness: Readiness) -> None:
        loop = asyncio.get_running_loop()

        def end(code: int) -> None:
            if self._stop.is_set():
                _log.warning("second signal: stopping at once")
                os._exit(code)  # the engine's child and the store's lock end with us
            self.stop()

        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: end(_TERMINATED),
            signal.SIGINT: lambda: end(_INTERRUPTED),
            signal.SIGUSR1: lambda: self._drain(readiness),
            signal.SIGUSR2: logs.toggle_debug,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)


def _forget(prefix_cache: PrefixCache, event: Event) -> None:
    """Let nothing stay of a session that has gone."""
    if isinstance(event, (SessionGone, SessionCreationAborted)):
        prefix_cache.forget(event.session_id)


async def _forget_others(
    prefix_cache: PrefixCache, engine: Engine, sessions: SessionRegistry
) -> None:
    """Let nothing stay of sessions that went while nobody could tell the engine: it was not up yet,
    another one ran, or the daemon was killed."""
    while True:
        with contextlib.suppress(EngineUnavailable, StoreUnavailable):  # both observed
            await engine.ready()
            for session_id in prefix_cache.remembered():
                in_use = sessions.turn_queue.in_use()
                if session_id not in in_use and await sessions.current(session_id) is None:
                    prefix_cache.forget(session_id)
            return
        await asyncio.sleep(_PROBE_SECONDS)


async def _probe(sessions: SessionRegistry, readiness: Readiness) -> None:
    """Touch a store that is down now and then: it recovers with a call, and nobody may call a
    daemon that is not ready."""
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        if not readiness.store_up:
            with contextlib.suppress(StoreUnavailable):  # observed
                await sessions.counts()


async def _sweep(commands: SessionCommands, interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        with contextlib.suppress(StoreUnavailable):  # observed; the next round tries again
            await commands.sweep()
