"""Spans: a server span an RPC that continues the caller's trace, and what the core tells of waits
and of calls that share a completion.

A completion is a task that begins in its RPC and inherits its context, so what it does is below
that RPC's span, also when it goes on without the caller. A call that attaches to it or resumes it
is a trace of its own with a link to that span.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ruvd.core.ports.events import (
    CompletionBegan,
    CompletionEnded,
    CompletionJoined,
    EngineTaken,
    Event,
)
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.spans import SAMPLED, Caller, Ids, Span, Tracer, Value, current

# What a server is to blame for, by the conventions for gRPC.
_ERRORS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip
_HEADERS = ("traceparent", "tracestate")
_FLAGS = SAMPLED | trace.TraceFlags.RANDOM_TRACE_ID
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
        self.records = tracer.ended is not None  # spans, or metrics alone

    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> RpcCall:
        """Be inside the RPC `method` (`/package.Service/Method`), as a context manager."""
        above = None
        for key, _ in metadata:
            if key == "traceparent":
                above = _caller(metadata)
                break
        return RpcCall(self._tracer, method[1:], above, peer, self._instruments)


class RpcCall(Span):
    """One RPC, and the current span while it lasts; `code` is how it ended."""

    __slots__ = ("_clock", "_instruments", "_peer", "_token", "code")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        above: Caller | None,
        peer: str,
        instruments: Instruments,
    ) -> None:
        super().__init__(tracer, name, above, kind=SpanKind.SERVER)
        self.code = "OK"
        self._peer = peer
        self._instruments = instruments

    def facts(self) -> dict[str, Value]:
        """See `Span.facts`."""
        return {
            "rpc.system.name": "grpc",
            "rpc.method": self.name,
            **_peer(self._peer),
            "rpc.response.status_code": self.code,
        }

    def __enter__(self) -> Self:
        self._clock = time.perf_counter()
        self._token = current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        current.reset(self._token)
        code = self.code
        if code in _ERRORS:
            self.error = code
        self._instruments.served(self.name, code, time.perf_counter() - self._clock, self)
        self.end()


class CompletionSpans:
    """What the core tells of completions, as spans, links and attributes. An Observer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._begun: dict[str, Ids] = {}

    def __call__(self, event: Event) -> None:
        """Put it on record; the current span is that of the call that it belongs to."""
        if isinstance(event, CompletionBegan):
            span = current.get()
            if span is not None and span.trace_id:
                self._begun[event.completion_id] = (span.trace_id, span.span_id)
                if len(self._begun) > _KEPT:
                    del self._begun[next(iter(self._begun))]
        elif isinstance(event, CompletionJoined):
            begun, span = self._begun.get(event.completion_id), current.get()
            if begun is not None and span is not None:
                how = "resumed" if event.resumed else "deduplicated"
                joined = {"ruvd.completion.id": event.completion_id, "ruvd.completion.joined": how}
                span.link(begun, joined)
        elif isinstance(event, EngineTaken):
            self._waited(event.queue_seconds)
        elif isinstance(event, CompletionEnded) and event.failed and not event.context_messages:
            # It never had the engine: all of its time was the wait.
            self._waited(event.timings.queue_seconds, error=event.reason)

    def _waited(self, seconds: float, *, error: str = "") -> None:
        if seconds < _WAIT_SECONDS:
            return
        span = Span(self._tracer, "ruvd.queue", current.get())
        now = span.began
        span.began = now - int(seconds * 1e9)
        span.error = error
        span.end(now)


def trace_headers(span: Span) -> Mapping[str, str]:
    """W3C's headers for a call below the span; nothing without one."""
    if not span.trace_id:
        return {}
    parent = f"00-{span.trace_id.hex()}-{span.span_id.hex()}-{span.flags:02x}"
    if span.state:
        return {"traceparent": parent, "tracestate": span.state}
    return {"traceparent": parent}


def current_ids() -> Mapping[str, str]:
    """What a log line says of the span it is written in; nothing outside of one."""
    span = current.get()
    if span is None or not span.trace_id:
        return {}
    return {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex()}


def _caller(metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
    """The caller's span, by W3C's headers; None if they cannot be read."""
    carrier = {k: v for k, v in metadata if k in _HEADERS and isinstance(v, str)}
    told = trace.get_current_span(propagator.extract(carrier)).get_span_context()
    if not told.is_valid:
        return None
    return Caller(
        told.trace_id.to_bytes(16),
        told.span_id.to_bytes(8),
        told.trace_flags & _FLAGS,
        told.trace_state.to_header(),
    )


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
