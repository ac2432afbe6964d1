"""A collector that accepts every OTLP export over gRPC without reading it. It prints its port.

On SIGTERM it writes the number of exports and bytes of each signal to standard error and ends, so
that a benchmark can check that something was exported.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from typing import Any

import grpc
import grpc.aio

_METHODS = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
}


class Sink(grpc.GenericRpcHandler):
    """A gRPC handler that answers each export with an empty message."""

    def __init__(self) -> None:
        self.exports: Counter[str] = Counter()
        self.size: Counter[str] = Counter()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of an export, or None for other methods."""
        kind = _METHODS.get(handler_call_details.method)
        if kind is None:
            return None

        async def take(request: bytes, _: object) -> bytes:
            self.exports[kind] += 1
            self.size[kind] += len(request)
            return b""

        return grpc.unary_unary_rpc_method_handler(take)


async def serve() -> None:
    """Serves until SIGTERM."""
    sink = Sink()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((sink,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(1.0)
    print(json.dumps({"exports": sink.exports, "bytes": sink.size}), file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(serve())
