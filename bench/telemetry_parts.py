"""The least that the OpenTelemetry SDK costs for a completion: two spans and eleven measurements.

It measures the SDK alone, in one thread with warm caches, as CPU time; the smallest of several runs
counts, so that other load on the machine matters little. In the middle of 64 streams the same code
takes half as much again or more, because it is not in the CPU's caches. The rest of the cost that
`bench/telemetry.py` measures is ruvd's own: contexts, trace headers, and the queue of calls.

Run it with `.venv/bin/python -m bench.telemetry_parts`; it takes a few seconds.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.util.types import AttributeValue

from bench.machine import describe
from ruvd.telemetry.conventions import OPERATION_SECONDS

_RPC: dict[str, AttributeValue] = {
    "rpc.system.name": "grpc",
    "rpc.method": "ruvd.v1.SessionService/Complete",
    "rpc.response.status_code": "OK",
}
_GENERATION: dict[str, AttributeValue] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai-compatible",
    "server.address": "127.0.0.1",
    "server.port": 8000,
    "gen_ai.request.model": "gpt-4.1",
}
_CHAT: dict[str, AttributeValue] = {
    **_GENERATION,
    "gen_ai.conversation.id": "bench-1-2",
    "gen_ai.request.stream": True,
    "gen_ai.response.time_to_first_chunk": 0.05,
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.usage.input_tokens": 9,
    "gen_ai.usage.output_tokens": 64,
}
# The sets of attributes of a completion's eleven measurements, by how many have one like this.
_MEASUREMENTS: tuple[tuple[int, dict[str, AttributeValue]], ...] = (
    (4, _GENERATION),
    (2, {**_GENERATION, "gen_ai.token.type": "input"}),
    (1, _RPC),
    (3, {"ruvd.completion.kind": "session"}),
    (1, {}),
)


class _Kept(SpanExporter):
    """Keeps the spans that it is to export."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans = list(spans)
        return SpanExportResult.SUCCESS


def _microseconds(call: Callable[[], object], runs: int, calls: int = 1000) -> float:
    """Returns the CPU time of a call, in µs: the least mean of all runs."""
    means = []
    for _ in range(runs):
        began = time.thread_time_ns()
        for _ in range(calls):
            call()
        means.append((time.thread_time_ns() - began) / calls / 1000)
    return min(means)


def measure(runs: int) -> dict[str, float]:
    """Returns the figures in µs by their names."""
    tracers, kept = TracerProvider(shutdown_on_exit=False), _Kept()
    processor = BatchSpanProcessor(kept)
    tracers.add_span_processor(processor)
    tracer = tracers.get_tracer("bench")
    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bench")
    histogram = meter.create_histogram(
        "bench", explicit_bucket_boundaries_advisory=OPERATION_SECONDS
    )
    context = trace.set_span_in_context(tracer.start_span("parent"), Context())

    def span(attributes: dict[str, AttributeValue]) -> None:
        made = tracer.start_span("span", context)
        made.set_attributes(attributes)
        made.end(time.time_ns())

    def spans() -> None:
        span(_RPC)
        span(_CHAT)

    figures = {"two spans: start, attributes, end": _microseconds(spans, runs)}
    processor.force_flush()
    for _ in range(200):
        spans()
    processor.force_flush()
    encoded = _microseconds(lambda: encode_spans(kept.spans).SerializeToString(), runs, 3)
    figures["two spans: encoding"] = encoded / 200
    figures["eleven measurements with attributes"] = sum(
        count * _microseconds(lambda: histogram.record(0.5, labels, context), runs)  # noqa: B023
        for count, labels in _MEASUREMENTS
    )
    bare = _microseconds(lambda: histogram.record(0.5, None, context), runs)
    figures["eleven measurements without attributes"] = 11 * bare
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    gc.disable()
    print(describe())
    for name, value in measure(options.runs).items():
        print(f"{name}: {value:.1f} µs")


if __name__ == "__main__":
    main()
