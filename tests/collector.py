"""An OpenTelemetry collector for tests: a real receiver of OTLP, over gRPC or HTTP.

It keeps everything that it receives. A stalled collector accepts every export and answers none.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SECONDS = 20.0


class Collector:
    """A collector with all spans and log records in the order of arrival, and each metric's last
    state."""

    def __init__(self) -> None:
        self.port = 0
        self.exports = 0
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.logs: list[str] = []
        self.resource: dict[str, Any] = {}
        self.answers = asyncio.Event()
        self.answers.set()
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stall(self) -> None:
        self.answers.clear()

    async def start(self) -> None:
        """Starts to listen, at the same port as before if it has listened before."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        trace_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Traces(self), server
        )
        metrics_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Metrics(self), server
        )
        logs_grpc.add_LogsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Logs(self), server
        )
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def start_http(self) -> None:
        self._server = await asyncio.start_server(self._serve_http, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops at once, as if killed."""
        server, self._server = self._server, None
        if isinstance(server, asyncio.Server):
            server.close()
        elif server:
            await server.stop(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds. It is checked whenever something arrives."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                await self._changed.wait()

    def named(self, name: str) -> list[Span]:
        """Returns the spans whose names begin with `name`."""
        return [span for span in self.spans if span.name.startswith(name)]

    async def span(self, name: str) -> Span:
        """Returns the first span whose name begins with `name`, as soon as it has arrived."""
        await self.until(lambda: self.named(name))
        return self.named(name)[0]

    async def take(self, request: Any) -> None:
        """Keeps an export and returns when it may be answered."""
        self.exports += 1
        if isinstance(request, trace_pb.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self.resource = attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        elif isinstance(request, logs_pb.ExportLogsServiceRequest):
            for logged in request.resource_logs:
                for each in logged.scope_logs:
                    self.logs += [record.body.string_value for record in each.log_records]
        else:
            for resource in request.resource_metrics:
                self.resource = attributes(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope.metrics})
        self._changed.set()
        self._changed = asyncio.Event()
        await self.answers.wait()

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _until_end(reader):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers["content-length"]))
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                kinds: dict[str, Any] = {
                    "/v1/traces": trace_pb.ExportTraceServiceRequest,
                    "/v1/logs": logs_pb.ExportLogsServiceRequest,
                    "/v1/metrics": metrics_pb.ExportMetricsServiceRequest,
                }
                await self.take(kinds[first.split(" ")[1]].FromString(body))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        finally:
            writer.close()


class _Traces(trace_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._collector.take(request)
        return trace_pb.ExportTraceServiceResponse()


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._collector.take(request)
        return metrics_pb.ExportMetricsServiceResponse()


class _Logs(logs_grpc.LogsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._collector.take(request)
        return logs_pb.ExportLogsServiceResponse()


async def _until_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def attributes(pairs: Any) -> dict[str, Any]:
    """Returns attributes as a dictionary."""
    found: list[KeyValue] = list(pairs)
    return {pair.key: _value(pair.value) for pair in found}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")


def points(metric: Metric) -> list[Any]:
    """Returns the data points of any kind of metric."""
    return list(getattr(metric, metric.WhichOneof("data") or "gauge").data_points)


@asynccontextmanager
async def collecting(protocol: str = "grpc") -> AsyncIterator[Collector]:
    """Runs a collector on a free port."""
    collector = Collector()
    await (collector.start() if protocol == "grpc" else collector.start_http())
    try:
        yield collector
    finally:
        collector.answers.set()
        await collector.stop()
