"""Histograms: what the SDK's are, at a twentieth of what each value costs there.

A completion makes ten measurements, and the SDK takes some 15 microseconds for each, mostly for
what is the same every time: a stranger's attributes, views, aggregations to choose from. Here a
value is a look-up of its series and an addition; what is exported are the SDK's own data points.
A series is written by one thread, and read from any: a reader sees at worst a sum that has one
value more than its buckets.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.trace import SpanContext, TraceFlags

Attributes = Mapping[str, str | int | bool]
_NOTHING: Attributes = {}
_SAMPLED = TraceFlags.SAMPLED


class Series:
    """The values with the same attributes; the newest sampled span of each bucket."""

    __slots__ = ("_bounds", "_with_spans", "attributes", "counts", "least", "most", "spans",
                 "start", "sum")  # fmt: skip

    def __init__(
        self, attributes: Attributes, bounds: Sequence[float], *, with_spans: bool
    ) -> None:
        self.attributes = dict(attributes)
        self.counts = [0] * (len(bounds) + 1)
        self.spans: dict[int, tuple[float, int, SpanContext]] = {}
        self.sum = 0.0
        self.least = float("inf")
        self.most = float("-inf")
        self.start = time.time_ns()
        self._bounds = bounds
        self._with_spans = with_spans

    def record(self, value: float, span: SpanContext | None = None) -> None:
        """Add a value; the span, by default the current one, is its exemplar if it is sampled."""
        at = bisect_left(self._bounds, value)
        self.counts[at] += 1
        self.sum += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value
        if self._with_spans:
            span = span or trace.get_current_span().get_span_context()
            if span.trace_flags & _SAMPLED:
                self.spans[at] = (value, time.time_ns(), span)

    def exemplars(self) -> list[Exemplar]:
        """The newest of each bucket."""
        return [
            Exemplar({}, value, when, span.span_id, span.trace_id)
            for value, when, span in list(self.spans.values())
        ]


class Histogram:
    """One instrument, with explicit buckets."""

    def __init__(
        self, name: str, unit: str, text: str, bounds: Sequence[float], *, exemplars: bool
    ) -> None:
        self.name = name
        self.unit = unit
        self.text = text
        self.bounds = tuple(bounds)
        self._exemplars = exemplars
        self._series: dict[frozenset[tuple[str, str | int | bool]], Series] = {}

    def at(self, attributes: Attributes) -> Series:
        """The series of these attributes, for whoever records often."""
        key = frozenset(attributes.items())
        series = self._series.get(key)
        if series is None:
            series = Series(attributes, self.bounds, with_spans=self._exemplars)
            self._series[key] = series
        return series

    def record(
        self, value: float, attributes: Attributes = _NOTHING, span: SpanContext | None = None
    ) -> None:
        """Add a value; see `Series.record`."""
        self.at(attributes).record(value, span)

    def metric(self, now: int) -> Metric:
        """All there is, cumulative."""
        written = [series for series in list(self._series.values()) if any(series.counts)]
        points = [self._point(series, now) for series in written]
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return Metric(self.name, self.text, self.unit, data)

    def _point(self, series: Series, now: int) -> HistogramDataPoint:
        counts = tuple(series.counts)
        return HistogramDataPoint(
            attributes=series.attributes,
            start_time_unix_nano=series.start,
            time_unix_nano=now,
            count=sum(counts),
            sum=series.sum,
            bucket_counts=counts,
            explicit_bounds=self.bounds,
            min=series.least,
            max=series.most,
            exemplars=series.exemplars(),
        )


class Histograms:
    """The histograms of one daemon."""

    def __init__(self, *, exemplars: bool = True) -> None:
        self._exemplars = exemplars
        self._all: list[Histogram] = []

    def create(self, name: str, unit: str, text: str, bounds: Sequence[float]) -> Histogram:
        """Make one."""
        histogram = Histogram(name, unit, text, bounds, exemplars=self._exemplars)
        self._all.append(histogram)
        return histogram

    def joined(self, data: MetricsData, deltas: Deltas | None = None) -> MetricsData:
        """What the SDK has collected, with the histograms that have a value; with `deltas` what
        has come since these were asked for last."""
        now = time.time_ns()
        metrics = [metric for each in self._all if (metric := each.metric(now)).data.data_points]
        if deltas is not None:
            metrics = deltas.since(metrics)
        if not metrics or not data.resource_metrics:
            return data
        resource, *resources = data.resource_metrics
        scope, *scopes = resource.scope_metrics
        scope = replace(scope, metrics=[*scope.metrics, *metrics])
        resource = replace(resource, scope_metrics=[scope, *scopes])
        return replace(data, resource_metrics=[resource, *resources])


class Deltas:
    """Makes cumulative histograms into what has come since the last time, for one exporter."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, frozenset[tuple[str, object]]], HistogramDataPoint] = {}

    def since(self, metrics: Sequence[Metric]) -> list[Metric]:
        """The same metrics without what was given before; those with nothing new are left out."""
        out = []
        for metric in metrics:
            points = [
                point
                for each in metric.data.data_points
                if isinstance(each, HistogramDataPoint)
                and (point := self._point(metric.name, each)).count
            ]
            if points:
                data = HistogramData(points, AggregationTemporality.DELTA)
                out.append(replace(metric, data=data))
        return out

    def _point(self, name: str, point: HistogramDataPoint) -> HistogramDataPoint:
        key = (name, frozenset((point.attributes or {}).items()))
        last = self._last.get(key)
        self._last[key] = point
        if last is None:
            return point
        counts = tuple(
            now - before
            for now, before in zip(point.bucket_counts, last.bucket_counts, strict=True)
        )
        # The least and the most of all is the nearest that is known to those of the interval.
        return replace(
            point,
            start_time_unix_nano=last.time_unix_nano,
            count=sum(counts),
            sum=point.sum - last.sum,
            bucket_counts=counts,
            exemplars=[
                each for each in point.exemplars if each.time_unix_nano > last.time_unix_nano
            ],
        )
