"""OpenTelemetry's SDK, set up by the standard OTEL_* variables; imported only when it is wanted.

Exporting happens on threads, from queues that are bounded and drop what does not fit, so a
collector that is away or hangs costs no request anything; it is told once, and again when it is
over. The way to the collector is the SDK's, only spans are encoded here (`ruvd.telemetry.otlp`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType, NoneType
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.environment_variables import OTEL_METRICS_EXEMPLAR_FILTER
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ruvd.telemetry.histograms import Deltas, Histograms
from ruvd.telemetry.otlp import Encoder
from ruvd.telemetry.outbox import Outbox, Pace
from ruvd.telemetry.spans import Span, Tracer

_log = logging.getLogger("ruvd.telemetry")
_FLUSH_SECONDS = 2.0
# What the SDK's exporters encode spans with, by the name that they import it under.
_ENCODE = "encode_spans"
_EXPLICIT = (ExplicitBucketHistogramAggregation, NoneType)


class Telemetry:
    """The providers of one daemon. `prometheus` is there if somebody is to collect from here."""

    def __init__(self, protocols: Mapping[str, str], version: str, *, prometheus: bool) -> None:
        """Begin to export: `protocols` is by signal, the rest is what OTEL_* variables say.

        Blocks, because it imports. Raises ValueError for a variable that cannot be understood.
        """
        self._outage = _Outage()
        self._closers: list[Callable[[], object]] = []
        self._exporters: list[_Spans | MetricExporter] = []
        resource = _resource(version)
        exemplars = os.environ.get(OTEL_METRICS_EXEMPLAR_FILTER, "").lower() != "always_off"
        self.histograms = Histograms(exemplars=exemplars)
        self.prometheus = InMemoryMetricReader() if prometheus else None
        self.tracer = Tracer()
        self.meter = metrics.NoOpMeterProvider().get_meter("ruvd")
        if protocol := protocols.get("traces"):
            pace = Pace.chosen(os.environ)
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            spans = _Spans(protocol, self._outage)
            self._exporters.append(spans)
            outbox = Outbox(spans.export, pace)
            self.tracer = Tracer(tracers, InstrumentationScope("ruvd", version), outbox.put)
            self._closers.append(partial(_call_each, outbox.close, spans.shutdown))
        readers: list[MetricReader] = [self.prometheus] if self.prometheus else []
        if protocol := protocols.get("metrics"):
            exporter = _exporters_of(protocol, "metric").OTLPMetricExporter()
            figures = _WatchedMetrics(exporter, self._outage, self.histograms)
            self._exporters.append(figures)
            readers.append(PeriodicExportingMetricReader(figures))
        if readers:
            meters = MeterProvider(readers, resource, shutdown_on_exit=False)
            self.meter = meters.get_meter("ruvd", version)
            self._closers.append(lambda: meters.shutdown(timeout_millis=_FLUSH_SECONDS * 1000))

    async def close(self) -> None:
        """Export what is left, for two seconds at most. Idempotent."""
        closers, self._closers = self._closers, []
        flushed = await asyncio.gather(*(_within(_FLUSH_SECONDS, each) for each in closers))
        if not all(flushed):
            _log.warning("some telemetry was not exported: the collector did not answer in time")
            # Ends what still waits for it, on a thread because closing may wait, too.
            for exporter in self._exporters:
                threading.Thread(target=exporter.shutdown, daemon=True).start()


def _resource(version: str) -> Resource:
    ours = Resource(
        {
            "service.name": "ruvd",
            "service.version": version,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    return ours.merge(OTELResourceDetector().detect())  # what the environment says goes first


def _exporters_of(protocol: str, kind: str) -> ModuleType:
    """The SDK's module for a protocol and a kind of signal; no other protocol is imported."""
    package = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}"
    return importlib.import_module(f"{package}.{kind}_exporter")


class _Outage:
    """Says once that the collector is away, and once that it is back.

    It takes the place of the SDK's own log, which would say it with every export.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._worked = 0.0
        self._reason = _LastError()
        sdk = logging.getLogger("opentelemetry")
        sdk.setLevel(logging.ERROR)
        sdk.propagate = False
        sdk.handlers = [self._reason]

    def report(self, signal: str, began: float, *, exported: bool) -> None:
        """An export that `began` then has ended. Called on the SDK's threads.

        One that fails after another has worked, and began before that, is no news: the collector
        has come back meanwhile.
        """
        with self._lock:
            before = bool(self._failing)
            if exported:
                self._worked = time.monotonic()
                self._failing.discard(signal)
            elif began > self._worked:
                self._failing.add(signal)
            after = bool(self._failing)
        if after and not before:
            _log.warning(
                "telemetry is not exported; what does not fit into its queue is dropped",
                extra={"reason": self._reason.text},
            )
        elif before and not after:
            _log.info("telemetry is exported again")


class _LastError(logging.Handler):
    """Keeps the last error's text."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
        _log.debug("%s", self.text)


class _Spans:
    """The SDK's exporter of spans, which has our encoder in the place of its own."""

    def __init__(self, protocol: str, outage: _Outage) -> None:
        module = _exporters_of(protocol, "trace")
        self._encodes = hasattr(module, _ENCODE)
        if self._encodes:
            setattr(module, _ENCODE, Encoder().request)
        self._exporter: SpanExporter = module.OTLPSpanExporter()
        self._outage = outage

    def export(self, spans: Sequence[Span]) -> bool:
        whole: Any = spans if self._encodes else [span.readable() for span in spans]
        began = time.monotonic()
        exported = self._exporter.export(whole) is SpanExportResult.SUCCESS
        self._outage.report("traces", began, exported=exported)
        return exported

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _WatchedMetrics(MetricExporter):
    def __init__(self, exporter: MetricExporter, outage: _Outage, histograms: Histograms) -> None:
        temporality = exporter._preferred_temporality or {}  # noqa: SLF001  # no other way
        aggregation = exporter._preferred_aggregation or {}  # noqa: SLF001
        super().__init__(preferred_temporality=temporality, preferred_aggregation=aggregation)
        self._histograms = histograms
        chosen = temporality.get(HistogramInstrument)
        self._deltas = Deltas() if chosen is AggregationTemporality.DELTA else None
        if not isinstance(aggregation.get(HistogramInstrument), _EXPLICIT):
            _log.warning("histograms have the buckets of the conventions, not exponential ones")
        self._exporter = exporter
        self._outage = outage

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any
    ) -> MetricExportResult:
        joined = self._histograms.joined(metrics_data, self._deltas)
        began = time.monotonic()
        result = self._exporter.export(joined, timeout_millis, **options)
        self._outage.report("metrics", began, exported=result is MetricExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        self._exporter.shutdown(timeout_millis, **options)


def _call_each(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


async def _within(seconds: float, call: Callable[[], object]) -> bool:
    """Whether a blocking call ended in time; it goes on, on a thread that does not keep us."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        call()
        with contextlib.suppress(RuntimeError):  # the loop may be closed by then
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="ruvd-telemetry", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return False
    return True
