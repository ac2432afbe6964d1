"""Serves scripted handlers as the session service, for tests of clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import message_factory

from ruvd.v1 import session_service_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"]


@asynccontextmanager
async def serving(
    handlers: Mapping[str, Callable[..., Any]], *options: tuple[str, int]
) -> AsyncIterator[str]:
    """Serves handlers, by the names of their methods, and yields the address."""
    by_method: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, handler in handlers.items():
        method = _SERVICE.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        kind: Any = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        by_method[name] = kind(handler, request.FromString, response.SerializeToString)
    server = grpc.aio.server(options=options)
    handler_of_all = grpc.method_handlers_generic_handler(_SERVICE.full_name, by_method)
    server.add_generic_rpc_handlers((handler_of_all,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
