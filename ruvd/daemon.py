"""The composition root and the daemon's life: build, listen, health, signals, drain, close.

Order on the way up: store, sockets, engine (in the background). On the way down: refuse new turns,
let running ones end within `drain_seconds`, cancel the rest, stop the server, engine, store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ruvd import conventions, logs, signals
from ruvd.batch import Batches
from ruvd.checks import RequestLimits
from ruvd.completion import CompletionPolicy
from ruvd.completions import Completions
from ruvd.config import Settings
from ruvd.errors import StoreUnavailable
from ruvd.interceptors import Errors
from ruvd.lifecycle import Lifecycle
from ruvd.model import ContextWindow, Rendering
from ruvd.ports import Engine, EngineStateChanged, Event, Observer, Store, StoreStateChanged
from ruvd.service import SessionService
from ruvd.sessions import SessionPolicy, Sessions
from ruvd.sockets import AddressTaken, SocketClaim, owner_and_group
from ruvd.telemetry import Statistics
from ruvd.v1 import session_service_pb2, session_service_pb2_grpc

if TYPE_CHECKING:
    from ruvd.monitoring import Monitoring

_log = logging.getLogger("ruvd.daemon")
SERVICE = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# How long the streams of ended completions get to flush, and idle watchers to notice.
_FLUSH_SECONDS = 1.0
_PROBE_SECONDS = 2.0
_INTERRUPTED = 130
_TERMINATED = 143


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


class Readiness:
    """Keeps the health service true. An Observer of the engine's and the store's state."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        self._servicer = servicer
        self._engine = False
        self.store_up = False
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, event: Event) -> None:
        """Follow what goes up and down."""
        match event:
            case EngineStateChanged(up):
                self._engine = up
            case StoreStateChanged(up):
                self.store_up = up
            case _:
                return
        self._publish()

    def drain(self) -> None:
        """Readiness off: somebody else should get the next calls."""
        self._draining = True
        self._publish()

    async def serve(self) -> None:
        """The daemon listens."""
        for name in ("", SERVICE, "liveness"):
            await self._servicer.set(name, SERVING)
        await self._servicer.set("readiness", self._state())

    async def stop(self) -> None:
        """The daemon takes no new turns; it is alive until it has ended."""
        for name in ("", SERVICE, "readiness"):
            await self._servicer.set(name, NOT_SERVING)

    def _state(self) -> int:
        up = self._engine and self.store_up and not self._draining
        return SERVING if up else NOT_SERVING

    def _publish(self) -> None:
        task = asyncio.ensure_future(self._servicer.set("readiness", self._state()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Daemon:
    """One ruvd. `run` returns the exit code; `stop` ends it from within the loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self.addresses: list[str] = []
        self.started = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal. Raises StoreLocked and AddressTaken when it cannot begin."""
        settings = self._settings
        servicer = health.aio.HealthServicer()
        readiness = Readiness(servicer)
        statistics = Statistics()
        observers: list[Observer] = [logs.observe, statistics, readiness]

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
            with contextlib.suppress(StoreUnavailable):  # observed; it recovers by itself
                await store.open()
                for tell in (statistics, readiness):
                    tell(StoreStateChanged(up=True, detail=settings.store))
            engine = await asyncio.to_thread(build_engine, settings, observer)
            engine = monitoring.engine(engine) if monitoring else engine
            stack.push_async_callback(engine.close)
            clock = SystemClock()
            window = ContextWindow(
                settings.keep_exchanges,
                settings.max_exchanges,
                settings.max_context_tokens,
                Rendering(settings.rendering),
            )
            policy = SessionPolicy(
                enabled=settings.sessions_enabled,
                idle_timeout_seconds=settings.idle_timeout_seconds,
                max_sessions=settings.max_sessions,
                max_queue=settings.max_queue,
                max_session_bytes=settings.max_session_bytes,
                context_window=window,
            )
            limits = RequestLimits(
                max_request_bytes=settings.max_request_bytes,
                max_message_bytes=settings.max_message_bytes,
                max_messages=settings.max_messages,
                max_grace_seconds=settings.completion_retention_seconds,
            )
            completion_policy = CompletionPolicy(
                max_inflight=settings.max_inflight,
                retention_seconds=settings.completion_retention_seconds,
                max_log_bytes=settings.max_log_bytes,
                max_logs_bytes=settings.max_logs_bytes,
                batch_share=settings.batch_share,
            )
            sessions = Sessions(store, clock, observer, policy)
            lifecycle = Lifecycle(sessions, store, clock, observer, policy)
            completions = Completions(sessions, engine, clock, observer, completion_policy)
            batches = Batches(completions, clock, settings.batch_concurrency)
            server = _server(settings, monitoring)
            service = SessionService(
                sessions, lifecycle, completions, batches, statistics, limits, policy, engine
            )
            session_service_pb2_grpc.add_SessionServiceServicer_to_server(service, server)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            await self._listen(server, stack)
            if monitoring:
                monitoring.watch(sessions, completions)
                await self._show(monitoring)
            await server.start()
            await engine.start()
            await readiness.serve()
            self._handle_signals(readiness)
            sweeper = asyncio.create_task(_sweep(lifecycle, settings.sweep_interval_seconds))
            stack.callback(sweeper.cancel)
            probe = asyncio.create_task(_probe(sessions, readiness))
            stack.callback(probe.cancel)
            for address in self.addresses:
                _log.info("listening", extra={"address": address})
            self.started.set()
            await self._stop.wait()
            _log.info("draining", extra={"running": completions.running})
            await readiness.stop()
            await completions.drain(settings.drain_seconds)
            await server.stop(_FLUSH_SECONDS)
            if monitoring:  # before the store goes, which it counts with
                await monitoring.close()
        _log.info("stopped")
        return 0

    def stop(self) -> None:
        """Begin to drain, then end."""
        self._stop.set()

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
            signal.SIGUSR1: readiness.drain,
            signal.SIGUSR2: logs.toggle_debug,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)


def build_monitoring(settings: Settings, statistics: Statistics) -> Monitoring | None:
    """What the settings and the standard OTEL_* variables want of telemetry; None for nothing."""
    protocols = signals.protocols(os.environ)
    serves = bool(settings.metrics_listen)
    if serves and signals.disabled(os.environ):
        _log.warning("OTEL_SDK_DISABLED is set: there are no metrics to serve")
        serves = False
    if not protocols and not serves:
        return None
    from ruvd.exporters import Telemetry
    from ruvd.monitoring import Monitoring
    from ruvd.tracing import current_ids

    try:
        telemetry = Telemetry(protocols, version("ruvd"), prometheus=serves)
    except ValueError as error:
        _log.warning("telemetry is off: an OTEL_* variable is wrong", extra={"reason": str(error)})
        return None
    logs.correlate_with(current_ids)
    chosen = conventions.chosen(os.environ)
    provider = conventions.provider(settings.engine, settings.affinity, settings.base_url)
    return Monitoring(telemetry, chosen, provider, statistics)


def build_store(settings: Settings, observer: Observer) -> Store:
    """The store that the settings name."""
    path = settings.sqlite_path
    if path is None:
        from ruvd.stores.memory import MemoryStore

        return MemoryStore()
    from ruvd.stores.sqlite import SqliteStore

    return SqliteStore(path, durability=settings.durability, observer=observer)


def build_engine(settings: Settings, observer: Observer) -> Engine:
    """The engine that the settings name."""
    if settings.engine == "echo":
        from ruvd.engines.echo import EchoEngine

        return EchoEngine(
            delay_seconds=settings.echo_delay_seconds,
            nonce=settings.echo_nonce,
            observer=observer,
        )
    if settings.engine == "openai":
        from ruvd.engines.openai import OpenAIEngine

        return OpenAIEngine(
            observer=observer,
            base_urls=settings.base_url,
            model=settings.model,
            api_key=settings.api_key.get_secret_value(),
            api_key_file=settings.api_key_file,
            affinity=settings.affinity,
            affinity_header=settings.affinity_header,
            cache_salt=settings.cache_salt.get_secret_value(),
            ca_file=settings.ca_file,
            client_cert_file=settings.client_cert_file,
            client_key_file=settings.client_key_file,
            http2=settings.http2,
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
            total_seconds=settings.total_seconds,
            max_parallel=settings.max_parallel,
            retries=settings.retries,
            health_check_seconds=settings.health_check_seconds,
        )
    from ruvd.engines.llama import LlamaEngine

    return LlamaEngine(
        observer=observer,
        model_path=settings.llama_model,
        server_path=settings.llama_server,
        server_args=settings.llama_server_args,
        context_tokens=settings.llama_context_tokens,
        answer_tokens=settings.llama_answer_tokens,
        slots=settings.llama_slots,
        threads=settings.llama_threads,
        batch_tokens=settings.llama_batch_tokens,
        start_seconds=settings.engine_start_seconds,
    )


def _server(settings: Settings, monitoring: Monitoring | None) -> grpc.aio.Server:
    # Above our own limits, so that a refusal is ours and says why; not unbounded, so that one
    # request cannot take the pod's memory.
    receive = max(64 << 20, 4 * settings.max_request_bytes)
    return grpc.aio.server(
        interceptors=(Errors(monitoring.rpcs if monitoring else None),),
        options=(
            ("grpc.max_receive_message_length", receive),
            ("grpc.max_send_message_length", -1),  # what we send is bounded by what we keep
            ("grpc.so_reuseport", 0),  # a second daemon must not share the port silently
        ),
    )


async def _probe(sessions: Sessions, readiness: Readiness) -> None:
    """Touch a store that is down now and then: it recovers with a call, and nobody may call a
    daemon that is not ready."""
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        if not readiness.store_up:
            with contextlib.suppress(StoreUnavailable):  # observed
                await sessions.counts()


async def _sweep(lifecycle: Lifecycle, interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        with contextlib.suppress(StoreUnavailable):  # observed; the next round tries again
            await lifecycle.sweep()
