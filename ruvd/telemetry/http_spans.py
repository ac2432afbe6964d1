"""Spans and durations of requests over HTTP, by the semantic conventions of HTTP servers (v1.41.1).

The span of a request continues the caller's trace, as that of an RPC does, and is the parent of the
spans of the completion that the request starts.
"""

import time
from collections.abc import Mapping
from typing import Any, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.trace import SpanKind, Tracer

from ruvd.telemetry import conventions
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.histograms import GetMeter, LabelledHistogram, Labels
from ruvd.telemetry.rpc_spans import TRACE_HEADERS, caller_context, end_span

_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
_OTHER_METHOD = "_OTHER"
_TRACE_HEADERS = {name.encode() for name in TRACE_HEADERS}
_SERVER_ERROR = 500
# The longest text of a caller's that a span has as an attribute.
_MAX_TEXT = 1000


class HttpCalls:
    """Starts the span and records the duration of every request over HTTP.

    The series are few: they have the route's template, never the path.
    """

    def __init__(self, tracer: Tracer, get_meter: GetMeter, deferred: Deferred) -> None:
        self._tracer = tracer
        self._deferred = deferred
        self._duration = LabelledHistogram(
            get_meter,
            "http.server.request.duration",
            "s",
            "The duration of an incoming request over HTTP, until the end of its answer.",
            conventions.HTTP_SECONDS,
        )
        self._series: dict[tuple[tuple[str, str | int], ...], Histogram] = {}

    def call(self, scope: Mapping[str, Any]) -> "HttpCall":
        """Returns a context manager that measures the request of an ASGI scope."""
        return HttpCall(self, self._tracer, self._deferred, scope)

    def record(self, labels: Labels, seconds: float, span_context: Context) -> None:
        """Records the duration of a request."""
        key = tuple(labels.items())
        series = self._series.get(key)
        if series is None:
            self._series[key] = series = self._duration.series(labels)
        series.record(seconds, None, span_context)


class HttpCall:
    """One request. Its span is the current span inside the `with` block.

    `route` is the template of its path, empty if there is no such operation. `status` is that of
    the response, 0 while there is none. `error` is the reason why the server has failed.
    """

    __slots__ = ("_calls", "_context", "_deferred", "_ended", "_method", "_scope", "_seconds",
                 "_span", "_started", "_token", "_tracer", "error", "route", "status")  # fmt: skip

    def __init__(
        self, calls: HttpCalls, tracer: Tracer, deferred: Deferred, scope: Mapping[str, Any]
    ) -> None:
        self.route = ""
        self.status = 0
        self.error = ""
        self._calls = calls
        self._tracer = tracer
        self._deferred = deferred
        self._scope = scope
        method = scope["method"]
        self._method = method if method in _METHODS else _OTHER_METHOD

    def __enter__(self) -> Self:
        parent = _parent(self._scope)
        name = "HTTP" if self._method == _OTHER_METHOD else self._method
        self._span = self._tracer.start_span(name, parent, SpanKind.SERVER)
        self._context = trace.set_span_in_context(self._span, parent)
        self._token = context.attach(self._context)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._ended = time.time_ns()
        context.detach(self._token)
        self._deferred.add(self._record)

    def _record(self) -> None:
        error = self.error
        if not error and self.status >= _SERVER_ERROR:
            error = str(self.status)
        labels = self._labels()
        failed = {"error.type": error} if error else {}
        self._calls.record(labels | failed, self._seconds, self._context)
        if self._span.is_recording():
            if self.route:
                self._span.update_name(f"{labels['http.request.method']} {self.route}")
            self._span.set_attributes(_request(self._scope, self._method))
        end_span(self._span, labels, error, self._ended)

    def _labels(self) -> dict[str, str | int]:
        labels: dict[str, str | int] = {
            "http.request.method": self._method,
            "url.scheme": self._scope["scheme"],
        }
        if self.route:
            labels["http.route"] = self.route
        if self.status:
            labels["http.response.status_code"] = self.status
        return labels


def _parent(scope: Mapping[str, Any]) -> Context:
    """Returns a context with the caller's span, or an empty one without a valid one."""
    found = [
        (name.decode(), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name in _TRACE_HEADERS
    ]
    return caller_context(found) if found else Context()


def _request(scope: Mapping[str, Any], method: str) -> dict[str, str | int]:
    """Returns what only the span tells of a request."""
    attributes: dict[str, str | int] = {
        "url.path": scope["path"][:_MAX_TEXT],
        "network.protocol.version": scope["http_version"],
    }
    if method == _OTHER_METHOD:
        attributes["http.request.method_original"] = scope["method"][:_MAX_TEXT]
    if query := scope["query_string"]:
        attributes["url.query"] = query[:_MAX_TEXT].decode("latin-1")
    if client := scope.get("client"):
        attributes["network.peer.address"], attributes["network.peer.port"] = client
    for name, value in scope["headers"]:
        if name == b"user-agent":
            attributes["user_agent.original"] = value[:_MAX_TEXT].decode("latin-1")
    return attributes
