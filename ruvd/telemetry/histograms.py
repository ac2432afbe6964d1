"""Histograms: what the SDK's are, at a thirtieth of what each value costs there.

A completion makes ten measurements, and the SDK takes some 15 microseconds for each, mostly for
what is the same every time: a stranger's attributes, views, aggregations to choose from. Here a
value is a look-up of its series and an addition; what is exported are the SDK's own data points.
And even that waits: what happened is noted, and written into the series many notes at a time or
when somebody reads, which takes a quarter of the time that it takes between two chunks of an
answer.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVarTuple

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

from ruvd.telemetry.spans import SAMPLED, Attributes, Ids, Span, Value

_Facts = TypeVarTuple("_Facts")
# So many notes are written at a time: some milliseconds' work, were there more.
_MOST = 128


class Notes:
    """What is still to be written. Noted on one thread; written on that or on a reader's."""

    def __init__(self) -> None:
        self._notes: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._writing = threading.Lock()

    def note(self, write: Callable[[*_Facts], object], *facts: *_Facts) -> None:
        """Call `write` with the facts soon, and before anybody reads."""
        notes = self._notes
        notes.append((write, facts))
        if len(notes) >= _MOST and self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def write(self) -> None:
        """Write all there is. Called by readers."""
        with self._writing:
            self._write()

    def _write(self) -> None:
        while self._notes:
            write, facts = self._notes.popleft()
            write(*facts)


class Series:
    """The values with the same attributes; the newest sampled span of each bucket."""

    __slots__ = ("_bounds", "_with_spans", "attributes", "counts", "least", "most", "spans",
                 "start", "sum")  # fmt: skip

    def __init__(
        self, attributes: Attributes, bounds: Sequence[float], *, with_spans: bool
    ) -> None:
        self.attributes = dict(attributes)
        self.counts = [0] * (len(bounds) + 1)
        self.spans: dict[int, tuple[float, int, Ids]] = {}
        self.sum = 0.0
        self.least = float("inf")
        self.most = float("-inf")
        self.start = time.time_ns()
        self._bounds = bounds
        self._with_spans = with_spans

    def record(self, value: float, span: Span | None) -> None:
        """Add a value; the span is its exemplar if it is sampled."""
        at = bisect_left(self._bounds, value)
        self.counts[at] += 1
        self.sum += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value
        if span is not None and span.flags & SAMPLED and self._with_spans:
            when = span.ended or time.time_ns()
            self.spans[at] = (value, when, (span.trace_id, span.span_id))

    def exemplars(self) -> list[Exemplar]:
        """The newest of each bucket."""
        return [
            Exemplar({}, value, when, int.from_bytes(span_id), int.from_bytes(trace_id))
            for value, when, (trace_id, span_id) in list(self.spans.values())
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
        self._series: dict[frozenset[tuple[str, Value]], Series] = {}

    def at(self, attributes: Attributes) -> Series:
        """The series of these attributes, for whoever records often."""
        key = frozenset(attributes.items())
        series = self._series.get(key)
        if series is None:
            series = Series(attributes, self.bounds, with_spans=self._exemplars)
            self._series[key] = series
        return series

    def metric(self, now: int) -> Metric:
        """All there is in it, cumulative."""
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
        self.notes = Notes()

    def create(self, name: str, unit: str, text: str, bounds: Sequence[float]) -> Histogram:
        """Make one."""
        histogram = Histogram(name, unit, text, bounds, exemplars=self._exemplars)
        self._all.append(histogram)
        return histogram

    def joined(self, data: MetricsData, deltas: Deltas | None = None) -> MetricsData:
        """What the SDK has collected, with the histograms that have a value; with `deltas` what
        has come since these were asked for last."""
        self.notes.write()
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
