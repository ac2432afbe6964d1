"""An OpenTelemetry collector for tests: a real receiver of OTLP, over gRPC or HTTP.

It keeps what it gets. A collector that `stalls` takes every export and answers none.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SECONDS = 20.0


class Collector:
    """What was received: spans in the order of their coming, metrics as they were last."""

    def __init__(self) -> None:
        self.port = 0
        self.exports = 0
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
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
        """Listen, at the same port as before if there was one."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        trace_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Traces(self), server
        )
        metrics_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Metrics(self), server
        )
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def start_http(self) -> None:
        self._server = await asyncio.start_server(self._serve_http, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Be gone, as if killed."""
        server, self._server = self._server, None
        if isinstance(server, asyncio.Server):
            server.close()
        elif server:
            await server.stop(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition on what was received holds."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                await self._changed.wait()

    def named(self, name: str) -> list[Span]:
        """The spans whose names begin so."""
        return [span for span in self.spans if span.name.startswith(name)]

    async def span(self, name: str) -> Span:
        """The first span whose name begins so, as soon as it is there."""
        await self.until(lambda: self.named(name))
        return self.named(name)[0]

    async def take(self, request: Any) -> None:
        """Keep what came, and return when it is to be answered."""
        self.exports += 1
        if isinstance(request, trace_pb.ExportTraceServiceRequest):
            for of in request.resource_spans:
                self.resource = attributes(of.resource.attributes)
                for scope in of.scope_spans:
                    self.spans.extend(scope.spans)
        else:
            for each in request.resource_metrics:
                self.resource = attributes(each.resource.attributes)
                for scope in each.scope_metrics:
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


async def _until_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as Python has them."""
    found: list[KeyValue] = list(pairs)
    return {pair.key: _value(pair.value) for pair in found}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")


def points(metric: Metric) -> list[Any]:
    """The data points of any kind of metric."""
    return list(getattr(metric, metric.WhichOneof("data") or "gauge").data_points)


@asynccontextmanager
async def collecting(protocol: str = "grpc") -> AsyncIterator[Collector]:
    """A collector on a port of its own."""
    collector = Collector()
    await (collector.start() if protocol == "grpc" else collector.start_http())
    try:
        yield collector
    finally:
        collector.answers.set()
        await collector.stop()
