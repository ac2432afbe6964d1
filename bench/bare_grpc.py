"""A grpc.aio server that answers `Complete` from memory: what gRPC itself costs in Python.

It has no upstream, no session and no check, and sends messages that were serialised before: the
first event, the text and the last event, as few as ruvd sends when an answer arrives at once. For
the pod's model it sends 14 deltas at that model's pace, as many as ruvd does. No server on
grpc.aio can be cheaper. `bench/relay.py` runs it as the target `grpc`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
import uvloop

from bench.mock_upstream import POD_FIRST_MS, POD_MODEL, POD_TOKEN_MS, POD_TOKENS, token
from ruvd.v1 import session_service_pb2 as pb

_POD_DELTAS = 14


def _serialised(sequence: int, **event: Any) -> bytes:
    response = pb.CompleteResponse(event=pb.CompletionEvent(sequence=sequence, **event))
    return response.SerializeToString()


def _messages(deltas: Sequence[str]) -> list[bytes]:
    finished = pb.Finished(finish_reason=pb.FINISH_REASON_STOP)
    return [
        _serialised(1, started=pb.Started()),
        *(_serialised(2 + index, delta=pb.Delta(text=text)) for index, text in enumerate(deltas)),
        _serialised(2 + len(deltas), finished=finished),
    ]


class Answers:
    """Serves `Complete`."""

    def __init__(self, tokens: int) -> None:
        self._at_once = _messages(["".join(token(number) for number in range(tokens))])
        texts = [token(number) for number in range(POD_TOKENS)]
        size = -(-POD_TOKENS // _POD_DELTAS)
        self._paced = _messages(
            ["".join(texts[begin : begin + size]) for begin in range(0, POD_TOKENS, size)]
        )
        self._seconds = size * POD_TOKEN_MS / 1000

    async def complete(
        self, request: pb.CompleteRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[bytes, None]:
        if request.options.model != POD_MODEL:
            for message in self._at_once:
                yield message
            return
        seconds = POD_FIRST_MS / 1000
        for message in self._paced:
            yield message
            if message is not self._paced[-1]:
                await asyncio.sleep(seconds)
                seconds = self._seconds


async def serve(options: argparse.Namespace) -> None:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        Answers(options.tokens).complete,
        request_deserializer=pb.CompleteRequest.FromString,
        response_serializer=bytes,
    )
    handlers = {"Complete": handler}
    generic = grpc.method_handlers_generic_handler("ruvd.v1.SessionService", handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(options.listen)
    await server.start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, required=True, help="of an answer, except the pod's")
    parser.add_argument("--listen", required=True)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
