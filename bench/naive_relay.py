"""A minimal gRPC relay of chat completions, as one would first write it, for comparison.

It serves `ruvd.v1`'s Complete, so that one client measures both, but sends only the first event,
the text and the last event. It has no sessions and does not resume, cancel or map errors. It uses
httpx with its own transport, `aiter_lines` and `json.loads`, and sends one message per token.
`bench/relay.py` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import httpx
import uvloop

from ruvd.v1 import session_service_pb2 as pb

_ROLES = {pb.ROLE_SYSTEM: "system", pb.ROLE_USER: "user", pb.ROLE_ASSISTANT: "assistant"}


class Relay:
    """Serves `Complete`."""

    def __init__(self, base_url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits)  # noqa: S113

    async def complete(
        self, request: pb.CompleteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[pb.CompleteResponse, None]:
        body = {
            "model": request.options.model,
            "messages": [{"role": _ROLES[m.role], "content": m.content} for m in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sequence = 1
        yield _response(pb.CompletionEvent(sequence=sequence, started=pb.Started()))
        async with self._http.stream("POST", "/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        sequence += 1
                        delta = pb.Delta(text=text)
                        yield _response(pb.CompletionEvent(sequence=sequence, delta=delta))
        finished = pb.Finished(finish_reason=pb.FINISH_REASON_STOP)
        yield _response(pb.CompletionEvent(sequence=sequence + 1, finished=finished))


def _response(event: pb.CompletionEvent) -> pb.CompleteResponse:
    return pb.CompleteResponse(event=event)


async def serve(options: argparse.Namespace) -> None:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        Relay(options.base_url).complete,
        request_deserializer=pb.CompleteRequest.FromString,
        response_serializer=pb.CompleteResponse.SerializeToString,
    )
    server.add_registered_method_handlers("ruvd.v1.SessionService", {"Complete": handler})
    server.add_insecure_port(options.listen)
    await server.start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--listen", required=True)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
