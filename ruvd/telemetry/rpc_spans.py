"""Spans of RPCs, and spans and links for what the core reports about completions.

Every RPC has a server span that continues the caller's trace. A completion is a task that starts
inside its RPC and inherits its context, so the spans of the completion are children of that RPC's
span, even if the completion outlives the RPC. An RPC that attaches to a completion or resumes it
has a trace of its own, with a link to the span of the RPC that started the completion.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from ruvd.core.ports.events import (
    CompletionBegan,
    CompletionEnded,
    CompletionJoined,
    EngineTaken,
)
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.dispatch import Handlers
from ruvd.telemetry.instruments import Instruments

# The status codes that the conventions for gRPC count as errors of the server.
_SERVER_ERRORS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip
TRACE_HEADERS = ("traceparent", "tracestate")
# A shorter wait explains nothing and has no span.
_MIN_WAIT_SECONDS = 0.005
# The number of completions that a later RPC can link to.
_MAX_LINK_TARGETS = 10_000

_propagator = TraceContextTextMapPropagator()


class RpcCalls:
    """Starts the span and records the duration of every RPC."""

    def __init__(self, tracer: Tracer, instruments: Instruments, deferred: Deferred) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._deferred = deferred
        self.records = not isinstance(tracer, trace.NoOpTracer)

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str
    ) -> "RpcCall":
        """Returns a context manager that measures the RPC `method` (`/package.Service/Method`)."""
        parent = Context()
        for key, _ in metadata:
            if key == "traceparent":
                parent = caller_context(metadata)
                break
        return RpcCall(self._tracer, self._instruments, self._deferred, method[1:], parent, peer)

    def trace_headers(self) -> Mapping[str, str]:
        """Returns W3C's headers for a request that is made within the current span."""
        return trace_headers(context.get_current())


class RpcCall:
    """One RPC. Its span is the current span inside the `with` block. `code` is the name of the
    gRPC status that the RPC ended with."""

    __slots__ = ("_context", "_deferred", "_ended", "_instruments", "_name", "_parent", "_peer",
                 "_seconds", "_span", "_started", "_token", "_tracer", "code")  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        deferred: Deferred,
        name: str,
        parent: Context,
        peer: str,
    ) -> None:
        self.code = "OK"
        self._tracer = tracer
        self._instruments = instruments
        self._deferred = deferred
        self._name = name
        self._parent = parent
        self._peer = peer

    def __enter__(self) -> Self:
        self._span = self._tracer.start_span(self._name, self._parent, SpanKind.SERVER)
        self._context = trace.set_span_in_context(self._span, self._parent)
        self._token = context.attach(self._context)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._ended = time.time_ns()
        context.detach(self._token)
        self._deferred.add(self._record)

    def _record(self) -> None:
        code = self.code
        error = code if code in _SERVER_ERRORS else ""
        self._instruments.record_rpc(self._name, code, error, self._seconds, self._context)
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": self._name,
            "rpc.response.status_code": code,
            **_peer(self._peer),
        }
        end_span(self._span, attributes, error, self._ended)


class CompletionSpans:
    """Records what the core reports about completions as spans and links.

    The current span of a handler's event is that of the RPC to which the event belongs.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._link_targets: dict[str, SpanContext] = {}
        self.handlers: Handlers = {
            CompletionBegan: self._on_began,
            CompletionJoined: self._on_joined,
            EngineTaken: self._on_engine_taken,
            CompletionEnded: self._on_ended,
        }

    def _on_began(self, event: CompletionBegan) -> None:
        span_context = trace.get_current_span().get_span_context()
        if span_context.is_valid:
            self._link_targets[event.completion_id] = span_context
            if len(self._link_targets) > _MAX_LINK_TARGETS:
                del self._link_targets[next(iter(self._link_targets))]

    def _on_joined(self, event: CompletionJoined) -> None:
        target = self._link_targets.get(event.completion_id)
        if target is not None:
            how = "resumed" if event.resumed else "deduplicated"
            attributes = {"ruvd.completion.id": event.completion_id, "ruvd.completion.joined": how}
            trace.get_current_span().add_link(target, attributes)

    def _on_engine_taken(self, event: EngineTaken) -> None:
        self._record_wait(event.queue_seconds)

    def _on_ended(self, event: CompletionEnded) -> None:
        if event.failed and not event.context_messages:
            # The completion never reached the engine, so all of its time was spent in the queue.
            self._record_wait(event.timings.queue_seconds, error=event.reason)

    def _record_wait(self, seconds: float, *, error: str = "") -> None:
        if seconds < _MIN_WAIT_SECONDS:
            return
        now = time.time_ns()
        span = self._tracer.start_span("ruvd.queue", start_time=now - int(seconds * 1e9))
        end_span(span, {}, error, now)


def end_span(span: Span, attributes: Mapping[str, AttributeValue], error: str, ended: int) -> None:
    """Ends a span at the time `ended` (ns), as failed if `error` is not empty."""
    if span.is_recording():
        span.set_attributes({**attributes, "error.type": error} if error else attributes)
        if error:
            span.set_status(StatusCode.ERROR)
    span.end(ended)


def trace_headers(span_context: Context) -> dict[str, str]:
    """Returns W3C's headers for a request that is made within `span_context`."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, span_context)
    return headers


def current_ids() -> Mapping[str, str]:
    """Returns `trace_id` and `span_id` of the current span for a log line; empty without one."""
    span_context = trace.get_current_span().get_span_context()
    if not span_context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(span_context.trace_id),
        "span_id": trace.format_span_id(span_context.span_id),
    }


def caller_context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Returns a context with the caller's span, or an empty one if its headers are invalid."""
    carrier = {k: v for k, v in metadata if k in TRACE_HEADERS and isinstance(v, str)}
    return _propagator.extract(carrier, Context())


def _peer(peer: str) -> dict[str, str | int]:
    """Returns the attributes of `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; none of `unix:`."""
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return {}
    host = host.replace("%5B", "").replace("%5D", "").strip("[]")
    return {"network.peer.address": host, "network.peer.port": int(port)}
