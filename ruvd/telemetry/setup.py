"""Telemetry put together: what wraps the core's ports, what observes it, what shows it outside.

Made only where it is wanted, because everything of OpenTelemetry is imported here.
"""

from __future__ import annotations

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
from ruvd.telemetry.exporters import Telemetry
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.metered_store import MeteredStore
from ruvd.telemetry.observables import Gauges
from ruvd.telemetry.prometheus import Endpoint, Figures
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls

# How long a collector's thread waits for the store to count.
_COUNT_SECONDS = 1.0


class Monitoring:
    """One daemon's telemetry. An Observer."""

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
        self._instruments = Instruments(
            telemetry.meter, telemetry.histograms, settings, provider, statistics
        )
        self._spans = CompletionSpans(self._tracer)
        self._endpoint: Endpoint | None = None
        self.rpcs = RpcCalls(self._tracer, self._instruments)

    def __call__(self, event: Event) -> None:
        """Record what happened."""
        self._instruments(event)
        self._spans(event)

    def engine(self, engine: Engine) -> Engine:
        """The engine, measured."""
        return MeteredEngine(
            engine, self._tracer, self._instruments, self._provider, self._settings
        )

    def store(self, store: Store, kind: str) -> Store:
        """The store, measured; `kind` is what it is."""
        return MeteredStore(store, kind, self._tracer, self._instruments)

    def watch(self, sessions: SessionRegistry, completions: CompletionRegistry) -> None:
        """Observe the core. Called on the event loop that the core is in."""
        loop = asyncio.get_running_loop()
        self._instruments.watch(
            Gauges(
                active_sessions=_counter(sessions),
                active_completions=lambda: completions.running,
                waiting=lambda: _waiting(sessions, completions),
                event_log_bytes=lambda: completions.log_bytes,
                tasks=lambda: len(asyncio.all_tasks(loop)),
            )
        )

    async def listen(self, address: str) -> str:
        """Serve Prometheus at `host:port`, if there is what to serve; the address with its port.

        Raises OSError."""
        host, _, port = address.rpartition(":")
        reader = self._telemetry.prometheus
        if reader is None:
            return ""
        figures = Figures(reader, self._telemetry.histograms)
        self._endpoint = await asyncio.to_thread(Endpoint, figures, host.strip("[]"), int(port))
        return f"{host}:{self._endpoint.port}"

    async def close(self) -> None:
        """Stop to serve, and export what is left; two seconds at most. Idempotent."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint:
            await endpoint.close()
        await self._telemetry.close()


def _waiting(sessions: SessionRegistry, completions: CompletionRegistry) -> Mapping[str, int]:
    interactive, batch = completions.scheduler.waiting
    return {"engine": interactive, "batch": batch, "session": sessions.turn_queue.waiting}


def _counter(sessions: SessionRegistry) -> Callable[[], int | None]:
    """Asks the store on its event loop, from the thread of whoever collects."""
    loop, home = asyncio.get_running_loop(), threading.get_ident()

    def active() -> int | None:
        if loop.is_closed() or threading.get_ident() == home:  # it would wait for itself
            return None
        counts = asyncio.run_coroutine_threadsafe(sessions.counts(), loop)
        try:
            return counts.result(_COUNT_SECONDS).active
        except (StoreUnavailable, TimeoutError, CancelledError):
            counts.cancel()
            return None

    return active
