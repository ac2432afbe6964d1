"""The core in one process with telemetry around it, and the spans and metrics of the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from fakes import FrozenClock, ScriptedEngine
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ruvd.core.completions.completion import Completion, CompletionPolicy, CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.statistics import Statistics
from ruvd.stores.memory import MemoryStore
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.dispatch import observer_of
from ruvd.telemetry.histograms import Labels, with_attributes_on_points
from ruvd.telemetry.http_spans import HttpCalls
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.metered_engine import MeteredEngine
from ruvd.telemetry.metered_store import MeteredStore
from ruvd.telemetry.observables import Gauges
from ruvd.telemetry.rpc_spans import CompletionSpans, RpcCalls


@dataclass
class Watched:
    """The core on a scripted engine and a memory store, all measured.

    The sampler and the limits of its spans are those of the OTEL_* variables.
    """

    conventions: Conventions = Conventions()
    provider: Provider = Provider("test")
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    clock: FrozenClock = field(default_factory=FrozenClock)
    store: Store = field(default_factory=MemoryStore)
    completion_policy: CompletionPolicy = CompletionPolicy()
    min_commit_span_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = tracers.get_tracer("test")
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.statistics = Statistics()
        self.deferred = Deferred()

        def get_meter(attributes: Labels | None) -> Meter:
            return meters.get_meter("test", attributes=attributes)

        self.instruments = Instruments(
            get_meter,
            self.deferred,
            self.conventions,
            self.provider,
            self.statistics,
        )
        self.rpcs = RpcCalls(self.tracer, self.instruments, self.deferred)
        self.http = HttpCalls(self.tracer, get_meter, self.deferred)
        observe = observer_of(self.instruments.handlers, CompletionSpans(self.tracer).handlers)

        def observer(event: Event) -> None:
            self.statistics(event)
            observe(event)

        self.observer = observer
        self.metered_engine = MeteredEngine(
            self.engine,
            self.tracer,
            self.instruments,
            self.deferred,
            self.provider,
            self.conventions,
        )
        self.metered_store = MeteredStore(
            self.store,
            "memory",
            self.tracer,
            self.instruments,
            self.deferred,
            self.min_commit_span_seconds,
        )
        self.sessions = SessionRegistry(self.metered_store, self.clock, observer, SessionPolicy())
        self.completions = CompletionRegistry(
            self.sessions, self.metered_engine, self.clock, observer, self.completion_policy
        )
        self.instruments.observables.watch(
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
        """The spans that have ended and whose names begin with `name`."""
        self.deferred.flush()
        ended = self._exporter.get_finished_spans()
        return [span for span in ended if span.name.startswith(name)]

    def span(self, name: str) -> ReadableSpan:
        """The only span whose name begins with `name`."""
        (span,) = self.spans(name)
        return span

    def data(self) -> MetricsData:
        """The metrics as they leave the process."""
        self.deferred.flush()
        data = self._reader.get_metrics_data()
        assert data is not None
        return with_attributes_on_points(data)

    def metrics(self) -> dict[str, Metric]:
        return {
            metric.name: metric
            for resource in self.data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def value(self, name: str, **attributes: str) -> float:
        """The sum of a counter or gauge over all points that have these attributes."""
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
