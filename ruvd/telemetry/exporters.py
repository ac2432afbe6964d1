"""The OpenTelemetry SDK, configured by the standard OTEL_* variables.

This module is imported only where telemetry is on. Threads of the SDK export spans and metrics.
The queue of spans is bounded and drops the oldest when it is full, so a collector that is down or
hangs delays no request. The beginning and the end of an outage are each logged once.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    OTEL_BSP_MAX_QUEUE_SIZE,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ruvd.telemetry.histograms import GetMeter, with_attributes_on_points

_log = logging.getLogger("ruvd.telemetry")
_FLUSH_SECONDS = 2.0
# The modules and classes of the SDK's OTLP exporters, the same for both protocols.
_EXPORTERS = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
}


class Telemetry:
    """The tracer, the meters and the exporters of one daemon. `prometheus` is None if it is off."""

    def __init__(self, protocols: Mapping[str, str], version: str, *, prometheus: bool) -> None:
        """Starts the exporters. `protocols` has the protocol of each signal that is exported.

        Blocks, because it imports the exporters. Raises ValueError if an OTEL_* variable is
        invalid.
        """
        resource, outage = build_resource(version), Outage()
        self._exporters: list[Any] = []
        self._shutdowns: list[Callable[[], object]] = []
        self.prometheus = InMemoryMetricReader() if prometheus else None
        self.tracer: trace.Tracer = trace.NoOpTracer()
        self.get_meter: GetMeter = lambda _: metrics.NoOpMeter("ruvd")
        if protocol := protocols.get("traces"):
            exporter = self._exporter(protocol, "traces", outage)
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracers.add_span_processor(
                BatchSpanProcessor(exporter, max_export_batch_size=_batch_size())
            )
            self.tracer = tracers.get_tracer("ruvd", version)
            self._shutdowns.append(tracers.shutdown)
        readers: list[MetricReader] = [self.prometheus] if self.prometheus else []
        if protocol := protocols.get("metrics"):
            exporter = self._exporter(protocol, "metrics", outage)
            readers.append(PeriodicExportingMetricReader(exporter))
        if readers:
            meters = MeterProvider(readers, resource, shutdown_on_exit=False)
            self.get_meter = partial(meters.get_meter, "ruvd", version, None)
            self._shutdowns.append(partial(meters.shutdown, timeout_millis=_FLUSH_SECONDS * 1000))

    async def close(self) -> None:
        """Exports the remaining spans and metrics within two seconds. Idempotent."""
        shutdowns, self._shutdowns = self._shutdowns, []
        flushed = await asyncio.gather(*(_within(_FLUSH_SECONDS, call) for call in shutdowns))
        if not all(flushed):
            _log.warning("some telemetry was not exported: the collector did not answer in time")
            # Closing the exporters aborts their pending calls. It may block, hence the threads.
            for exporter in self._exporters:
                threading.Thread(target=exporter.shutdown, daemon=True).start()

    def _exporter(self, protocol: str, signal: str, outage: "Outage") -> Any:
        module, name = _EXPORTERS[signal]
        # Only the module of this protocol is imported.
        package = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}"
        base = getattr(importlib.import_module(f"{package}.{module}"), name)
        exporter = reporting_exporter(base, signal, outage)
        self._exporters.append(exporter)
        return exporter


def reporting_exporter(base: Any, signal: str, outage: "Outage") -> Any:
    """Returns an exporter of a class that derives from `base` and reports exports to `outage`."""

    class ReportingExporter(base):  # type: ignore[misc]  # the base is chosen at run time
        def export(self, *batch: Any, **options: Any) -> Any:
            started, exported = time.monotonic(), False
            if isinstance(batch[0], MetricsData):
                batch = (with_attributes_on_points(batch[0]), *batch[1:])
            try:
                result = super().export(*batch, **options)
                exported = result is type(result).SUCCESS
            finally:
                outage.report(signal, started, exported=exported)
            return result

    return ReportingExporter()


def _batch_size() -> int | None:
    """Returns a batch size for a queue that is smaller than the SDK's default batch of 512.

    The SDK refuses such a queue. Returns None where the SDK's own choice is valid.
    """
    queue_size = os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, "")
    if OTEL_BSP_MAX_EXPORT_BATCH_SIZE in os.environ or not queue_size.isdigit():
        return None
    return min(512, int(queue_size))


class _Resource(Resource):
    """A resource that computes its hash once.

    The exporter hashes the resource of every span, for which the SDK writes all its attributes as
    JSON each time, 3 µs or more.
    """

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._cached_hash = hash(resource)

    def __hash__(self) -> int:
        return self._cached_hash


def build_resource(version: str) -> Resource:
    """Returns the description of this daemon that goes with all it exports."""
    defaults = Resource(
        {
            "service.name": "ruvd",
            "service.version": version,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    environment = OTELResourceDetector().detect()
    return _Resource(defaults.merge(environment))  # the environment has precedence


class Outage:
    """Logs once that the collector is down, and once that it is back.

    It replaces the SDK's own log output, which repeats the error with every export.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._last_success = 0.0
        self._sdk_log = _SdkLog()
        sdk = logging.getLogger("opentelemetry")
        sdk.setLevel(logging.ERROR)
        sdk.propagate = False
        sdk.handlers = [self._sdk_log]
        # These warn about dropped spans and invalid variables, the exporters only about retries.
        logging.getLogger("opentelemetry.sdk").setLevel(logging.WARNING)

    def report(self, signal: str, started: float, *, exported: bool) -> None:
        """Reports the end of an export that started at `started`. Called on threads of the SDK.

        A failure is ignored if another export has succeeded since `started`, because the collector
        has come back in the meantime.
        """
        with self._lock:
            was_failing = bool(self._failing)
            if exported:
                self._last_success = time.monotonic()
                self._failing.discard(signal)
            elif started > self._last_success:
                self._failing.add(signal)
            is_failing = bool(self._failing)
        if is_failing and not was_failing:
            _log.warning(
                "telemetry is not exported; what does not fit into its queue is dropped",
                extra={"reason": self._sdk_log.last_error},
            )
        elif was_failing and not is_failing:
            self._sdk_log.forget_warnings()
            _log.info("telemetry is exported again")


class _SdkLog(logging.Handler):
    """Keeps the text of the SDK's last error, and passes each of its warnings on once."""

    def __init__(self) -> None:
        super().__init__()
        self.last_error = ""
        self._warnings: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Handles a record of the SDK."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.last_error = text
            _log.debug("%s", text)
        elif record.msg not in self._warnings:
            self._warnings.add(record.msg)
            _log.warning("OpenTelemetry: %s", text)

    def forget_warnings(self) -> None:
        """Lets every warning through once more."""
        self._warnings.clear()


async def _within(seconds: float, call: Callable[[], object]) -> bool:
    """Returns whether a blocking call ended in time. It continues on a daemon thread if not."""
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
