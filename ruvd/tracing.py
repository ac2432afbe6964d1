"""Spans: a server span an RPC that continues the caller's trace, and what the core tells of waits
and of calls that share a completion.

A completion is a task that begins in its RPC and inherits its context, so what it does is below
that RPC's span, also when it goes on without the caller. A call that attaches to it or resumes it
is a trace of its own with a link to that span.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ruvd.instruments import Instruments
from ruvd.ports import (
    CompletionBegan,
    CompletionEnded,
    CompletionJoined,
    EngineTaken,
    Event,
)

# What a server is to blame for, by the conventions for gRPC.
_ERRORS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip
_HEADERS = ("traceparent", "tracestate")
# A wait below this explains nothing.
_WAIT_SECONDS = 0.005
# Completions whose spans can be linked to.
_KEPT = 10_000

propagator = TraceContextTextMapPropagator()


@dataclass(slots=True)
class Outcome:
    """How an RPC ended; to be set before its span ends."""

    code: str = "OK"


class RpcCalls:
    """Makes the span and the metric of every RPC."""

    def __init__(self, tracer: Tracer, instruments: Instruments) -> None:
        self._tracer = tracer
        self._instruments = instruments

    @contextmanager
    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str
    ) -> Iterator[Outcome]:
        """Be inside the RPC `method` (`/package.Service/Method`)."""
        carrier = {k: v for k, v in metadata if k in _HEADERS and isinstance(v, str)}
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        outcome = Outcome()
        span = self._tracer.start_span(
            name,
            propagator.extract(carrier) if carrier else None,
            SpanKind.SERVER,
            {**attributes, **_peer(peer)},
        )
        began = time.perf_counter()
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield outcome
        finally:
            attributes["rpc.response.status_code"] = outcome.code
            if outcome.code in _ERRORS:
                attributes["error.type"] = outcome.code
                span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(attributes)
            elapsed = time.perf_counter() - began
            self._instruments.served(elapsed, attributes, trace.set_span_in_context(span))
            span.end()


class CompletionSpans:
    """What the core tells of completions, as spans, links and attributes. An Observer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._begun: OrderedDict[str, SpanContext] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Put it on record; the current span is that of the call that it belongs to."""
        match event:
            case CompletionBegan(completion_id):
                span = trace.get_current_span()
                self._begun[completion_id] = span.get_span_context()
                while len(self._begun) > _KEPT:
                    self._begun.popitem(last=False)
            case CompletionJoined(completion_id, resumed):
                begun = self._begun.get(completion_id)
                if begun is not None:
                    how = "resumed" if resumed else "deduplicated"
                    joined = {"ruvd.completion.id": completion_id, "ruvd.completion.joined": how}
                    trace.get_current_span().add_link(begun, joined)
            case EngineTaken():
                self._waited(event.queue_seconds)
            case CompletionEnded() if event.failed and not event.context_messages:
                # It never had the engine: all of its time was the wait.
                self._waited(event.timings.queue_seconds, error=event.reason)

    def _waited(self, seconds: float, *, error: str = "") -> None:
        if seconds < _WAIT_SECONDS:
            return
        now = time.time_ns()
        began = now - int(seconds * 1e9)
        span = self._tracer.start_span("ruvd.queue", start_time=began)
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)


def current_ids() -> Mapping[str, str]:
    """What a log line says of the span it is written in; nothing outside of one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def _peer(peer: str) -> dict[str, str | int]:
    """`ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` or `unix:`, as attributes."""
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {}
    host = host.replace("%5B", "").replace("%5D", "").strip("[]")
    return {"network.peer.address": host, "network.peer.port": int(port)}
