"""The core in one process with telemetry around it, and what the SDK got of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from fakes import FrozenClock, ScriptedEngine
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ruvd.core.completions.completion import Completion, CompletionPolicy, CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.core.sessions.registry import SessionPolicy, SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.stores.memory import MemoryStore
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.histograms import Histograms
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.metered_store import MeteredStore
from ruvd.telemetry.observables import Gauges
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls
from ruvd.telemetry.spans import Span, Tracer


@dataclass
class Watched:
    """The core on a scripted engine and a memory store, all measured."""

    conventions: Conventions = Conventions()
    provider: Provider = Provider("test")
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    clock: FrozenClock = field(default_factory=FrozenClock)
    store: Store = field(default_factory=MemoryStore)
    completion_policy: CompletionPolicy = CompletionPolicy()

    def __post_init__(self) -> None:
        self.ended: list[Span] = []
        self._reader = InMemoryMetricReader()
        self.tracer = Tracer(
            TracerProvider(shutdown_on_exit=False),
            InstrumentationScope("test"),
            self.ended.append,
        )
        meter = MeterProvider([self._reader], shutdown_on_exit=False).get_meter("test")
        self.statistics = Statistics()
        self.histograms = Histograms()
        self.instruments = Instruments(
            meter, self.histograms, self.conventions, self.provider, self.statistics
        )
        self.rpcs = RpcCalls(self.tracer, self.instruments)
        told = CompletionSpans(self.tracer)

        def observer(event: Event) -> None:
            self.statistics(event)
            self.instruments(event)
            told(event)

        self.observer = observer
        self.metered_engine = MeteredEngine(
            self.engine, self.tracer, self.instruments, self.provider, self.conventions
        )
        self.metered_store = MeteredStore(self.store, "memory", self.tracer, self.instruments)
        self.sessions = SessionRegistry(self.metered_store, self.clock, observer, SessionPolicy())
        self.completions = CompletionRegistry(
            self.sessions, self.metered_engine, self.clock, observer, self.completion_policy
        )
        self.instruments.watch(
            Gauges(
                active_sessions=lambda: 7,
                active_completions=lambda: self.completions.running,
                waiting=lambda: {"session": self.sessions.turn_queue.waiting},
                event_log_bytes=lambda: self.completions.log_bytes,
                tasks=lambda: len(asyncio.all_tasks()),
            )
        )

    def start(self, text: str = "hi", session_id: str = "s", **fields: object) -> Completion:
        messages = fields.pop("messages", (Message(Role.USER, text),))
        return self.completions.start(
            CompletionRequest(messages, session_id, **fields)  # type: ignore[arg-type]
        )

    def spans(self, name: str) -> Sequence[ReadableSpan]:
        """The spans that ended whose names begin so."""
        return [span.readable() for span in self.ended if span.name.startswith(name)]

    def span(self, name: str) -> ReadableSpan:
        """The only one of that name."""
        (span,) = self.spans(name)
        return span

    def metrics(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: metric
            for resource in self.histograms.joined(data).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def value(self, name: str, **attributes: str) -> float:
        """The value of a counter or gauge, over everything that has these attributes."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sum(
            point.value
            for point in self.metrics()[name].data.data_points
            if isinstance(point, NumberDataPoint)
            and wanted.items() <= dict(point.attributes or {}).items()
        )

    def histogram(self, name: str) -> list[HistogramDataPoint]:
        metric = self.metrics().get(name)
        points = metric.data.data_points if metric else ()
        return [point for point in points if isinstance(point, HistogramDataPoint)]
