"""The figures for Prometheus to scrape, in its text format or, if asked for, in OpenMetrics.

OpenTelemetry's own exporter for Prometheus leaves exemplars out, and they are the way from a slow
bucket to a trace. So the SDK's figures are translated here, by the rules of OpenTelemetry's
compatibility specification, and prometheus_client writes and serves them, on a thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from ruvd.telemetry.histograms import Histograms

_Bucket: TypeAlias = tuple[str, float] | tuple[str, float, Exemplar]
_UNITS = {"s": "seconds", "By": "bytes"}


class Endpoint:
    """Serves the figures over HTTP, at any path."""

    def __init__(self, figures: Collector, host: str, port: int) -> None:
        """Listen. Blocks. Raises OSError."""
        registry = CollectorRegistry()
        registry.register(figures)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port

    async def close(self) -> None:
        """Stop to listen."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()


class Figures(Collector):
    """Reads the SDK when Prometheus asks."""

    def __init__(self, reader: InMemoryMetricReader, histograms: Histograms) -> None:
        self._reader = reader
        self._histograms = histograms

    def collect(self) -> Iterable[Family]:
        """All figures of now."""
        data = self._reader.get_metrics_data()
        if data is None:
            return
        for resource in self._histograms.joined(data).resource_metrics:
            about = _labels(resource.resource.attributes)
            yield InfoMetricFamily("target", "What these figures are of.", about)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    yield _family(metric)


def _family(metric: Metric) -> Family:
    name, text = _name(metric), metric.description or ""
    points = metric.data.data_points
    names = sorted({key for point in points for key in _labels(point.attributes)})
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if any(isinstance(point, HistogramDataPoint) for point in points):
        family = HistogramMetricFamily(name, text, labels=names)
    elif isinstance(metric.data, Sum) and metric.data.is_monotonic:
        family = CounterMetricFamily(name, text, labels=names)
    else:
        family = GaugeMetricFamily(name, text, labels=names)
    for point in points:
        known = _labels(point.attributes)
        values = [known.get(each, "") for each in names]
        if isinstance(family, HistogramMetricFamily) and isinstance(point, HistogramDataPoint):
            family.add_metric(values, _buckets(point), point.sum)
        elif isinstance(point, NumberDataPoint) and not isinstance(family, HistogramMetricFamily):
            family.add_metric(values, point.value)
    return family


def _buckets(point: HistogramDataPoint) -> list[_Bucket]:
    """Cumulative counts, each bucket with the newest exemplar that fell into it."""
    exemplars: dict[int, Exemplar] = {}
    for each in sorted(point.exemplars, key=lambda one: one.time_unix_nano):
        if each.trace_id and each.span_id:
            ids = {
                "trace_id": format_trace_id(each.trace_id),
                "span_id": format_span_id(each.span_id),
            }
            at = sum(bound < each.value for bound in point.explicit_bounds)
            exemplars[at] = Exemplar(ids, each.value, each.time_unix_nano / 1e9)
    bounds = [*(repr(float(bound)) for bound in point.explicit_bounds), "+Inf"]
    buckets: list[_Bucket] = []
    total = 0
    for at, (bound, count) in enumerate(zip(bounds, point.bucket_counts, strict=True)):
        total += count
        exemplar = exemplars.get(at)
        buckets.append((bound, total, exemplar) if exemplar else (bound, total))
    return buckets


def _name(metric: Metric) -> str:
    name = _word(metric.name)
    unit = _UNITS.get(metric.unit or "", "")
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        _word(key): str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (attributes or {}).items()
    }


def _word(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
