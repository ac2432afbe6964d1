"""The telemetry of one daemon: wrappers of the core's ports, an observer, and the exporters.

This module is imported only where telemetry is on, because it imports OpenTelemetry.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError

from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.dispatch import observer_of
from ruvd.telemetry.exporters import Telemetry
from ruvd.telemetry.http_spans import HttpCalls
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.metered_store import MeteredStore
from ruvd.telemetry.observables import Gauges
from ruvd.telemetry.prometheus import Endpoint
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls

# The time that the thread of a collector waits for the store to count its sessions.
_COUNT_SECONDS = 1.0


class Monitoring:
    """The telemetry of one daemon. An Observer."""

    def __init__(
        self,
        telemetry: Telemetry,
        settings: Conventions,
        provider: Provider,
        statistics: Statistics,
    ) -> None:
        self._telemetry = telemetry
        self._settings = settings
        self._provider = provider
        self._tracer = telemetry.tracer
        self._deferred = Deferred()
        self._instruments = Instruments(
            telemetry.get_meter, self._deferred, settings, provider, statistics
        )
        self._observe = observer_of(
            self._instruments.handlers, CompletionSpans(self._tracer).handlers
        )
        self._endpoint: Endpoint | None = None
        self.rpcs = RpcCalls(self._tracer, self._instruments, self._deferred)
        self.http = HttpCalls(self._tracer, telemetry.get_meter, self._deferred)

    def __call__(self, event: Event) -> None:
        """Records an event."""
        self._observe(event)

    def engine(self, engine: Engine) -> Engine:
        """Returns a wrapper that measures the engine."""
        return self.named_engine("", engine, self._provider)

    def named_engine(self, name: str, engine: Engine, provider: Provider) -> Engine:
        """Returns a wrapper that measures an engine with a name."""
        return MeteredEngine(
            engine,
            self._tracer,
            self._instruments,
            self._deferred,
            provider,
            self._settings,
            name,
        )

    def label_engine(self, name: str, provider: Provider, model: str) -> None:
        """Gives the metrics of a named engine the labels of its provider."""
        self._instruments.label_engine(name, provider, model)

    def store(self, store: Store, kind: str) -> Store:
        """Returns a wrapper that measures the store. `kind` names it, such as `sqlite`."""
        return MeteredStore(store, kind, self._tracer, self._instruments, self._deferred)

    def watch(self, sessions: SessionRegistry, completions: CompletionRegistry) -> None:
        """Creates the gauges of the core. Called on the event loop of the core."""
        loop = asyncio.get_running_loop()
        self._instruments.observables.watch(
            Gauges(
                active_sessions=_session_counter(sessions),
                active_completions=lambda: completions.running,
                waiting=lambda: _waiting(sessions, completions),
                event_log_bytes=lambda: completions.log_bytes,
                tasks=lambda: len(asyncio.all_tasks(loop)),
            )
        )

    async def listen(self, address: str) -> str:
        """Serves Prometheus at `host:port` and returns the address with the port that was bound.

        Returns an empty string if Prometheus is off. Raises OSError if it cannot listen.
        """
        host, _, port = address.rpartition(":")
        reader = self._telemetry.prometheus
        if reader is None:
            return ""
        self._endpoint = await asyncio.to_thread(
            Endpoint, reader, self._deferred, host.strip("[]"), int(port)
        )
        return f"{host}:{self._endpoint.port}"

    async def close(self) -> None:
        """Stops serving and exports the remaining telemetry within two seconds. Idempotent."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint:
            await endpoint.close()
        self._deferred.flush()
        await self._telemetry.close()


def _waiting(sessions: SessionRegistry, completions: CompletionRegistry) -> Mapping[str, int]:
    waiting = completions.engines.waiting
    return {
        "engine": waiting[False],
        "batch": waiting[True],
        "session": sessions.turn_queue.waiting,
    }


def _session_counter(sessions: SessionRegistry) -> Callable[[], int | None]:
    """Returns a function that counts active sessions in the store, for use on other threads."""
    loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()

    def active() -> int | None:
        if loop.is_closed() or threading.get_ident() == loop_thread:  # a deadlock
            return None
        counts = asyncio.run_coroutine_threadsafe(sessions.counts(), loop)
        try:
            return counts.result(_COUNT_SECONDS).active
        except (StoreUnavailable, TimeoutError, CancelledError):
            counts.cancel()
            return None

    return active
