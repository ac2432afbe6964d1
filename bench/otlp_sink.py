"""A collector that takes every OTLP export over gRPC and looks at none: prints its port.

At its end, on SIGTERM, it writes to standard error how many exports and bytes there were, by
signal, so that whoever measures knows that something has come.
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
    """Answers each export with an empty message."""

    def __init__(self) -> None:
        self.exports: Counter[str] = Counter()
        self.size: Counter[str] = Counter()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of an export; None for other methods."""
        kind = _METHODS.get(handler_call_details.method)
        if kind is None:
            return None

        async def take(request: bytes, _: object) -> bytes:
            self.exports[kind] += 1
            self.size[kind] += len(request)
            return b""

        return grpc.unary_unary_rpc_method_handler(take)


async def serve() -> None:
    """Serve until SIGTERM."""
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
