"""Spans: a server span an RPC that continues the caller's trace, and what the core tells of waits
and of calls that share a completion.

A completion is a task that begins in its RPC and inherits its context, so what it does is below
that RPC's span, also when it goes on without the caller. A call that attaches to it or resumes it
is a trace of its own with a link to that span.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Self

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer
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


class RpcCalls:
    """Makes the span and the metric of every RPC."""

    def __init__(self, tracer: Tracer, instruments: Instruments) -> None:
        self._tracer = tracer
        self._instruments = instruments

    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> RpcCall:
        """Be inside the RPC `method` (`/package.Service/Method`), as a context manager."""
        above = None
        for key, _ in metadata:
            if key == "traceparent":
                carrier = {k: v for k, v in metadata if k in _HEADERS and isinstance(v, str)}
                above = propagator.extract(carrier)
                break
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, **_peer(peer)}
        span = self._tracer.start_span(name, above, SpanKind.SERVER, attributes)
        return RpcCall(span, name, self._instruments)


class RpcCall:
    """One RPC; `code` is how it ended, to be set before the end."""

    def __init__(self, span: Span, name: str, instruments: Instruments) -> None:
        self.code = "OK"
        self._span = span
        self._name = name
        self._instruments = instruments

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)
        span, code = self._span, self.code
        span.set_attribute("rpc.response.status_code", code)
        if code in _ERRORS:
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR))
        elapsed = time.perf_counter() - self._began
        error = code if code in _ERRORS else ""
        self._instruments.served(elapsed, self._name, code, error, span.get_span_context())
        span.end()


class CompletionSpans:
    """What the core tells of completions, as spans, links and attributes. An Observer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._begun: OrderedDict[str, SpanContext] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Put it on record; the current span is that of the call that it belongs to."""
        if isinstance(event, CompletionBegan):
            span = trace.get_current_span()
            self._begun[event.completion_id] = span.get_span_context()
            while len(self._begun) > _KEPT:
                self._begun.popitem(last=False)
        elif isinstance(event, CompletionJoined):
            begun = self._begun.get(event.completion_id)
            if begun is not None:
                how = "resumed" if event.resumed else "deduplicated"
                joined = {"ruvd.completion.id": event.completion_id, "ruvd.completion.joined": how}
                trace.get_current_span().add_link(begun, joined)
        elif isinstance(event, EngineTaken):
            self._waited(event.queue_seconds)
        elif isinstance(event, CompletionEnded) and event.failed and not event.context_messages:
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


def trace_headers(span: SpanContext) -> Mapping[str, str]:
    """W3C's headers for a call below the span; nothing without one."""
    if not span.is_valid:
        return {}
    flags = format(span.trace_flags, "02x")
    headers = {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{flags}"}
    if span.trace_state:
        headers["tracestate"] = span.trace_state.to_header()
    return headers


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
    if peer.startswith("unix:"):
        return {}
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {}
    host = host.replace("%5B", "").replace("%5D", "").strip("[]")
    return {"network.peer.address": host, "network.peer.port": int(port)}
