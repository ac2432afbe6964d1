"""The clients of `bench/relay.py`: one stream each call, checked to be whole.

Both are as cheap as they can be made, because they have to share the machine with what they
measure. The HTTP client writes a request made before and looks for bytes in the answer, it parses
no JSON; the gRPC client parses its messages, which protobuf does in C.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import grpc

from bench.mock_upstream import MODEL, PACED_MODEL, token
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

TEXT = "Tell me in a few words what a sidecar is, and when one is better than a library. " * 3
_TOKEN = re.compile(rb" word\d\d")
_EVENT = re.compile(rb"^data: .* word\d\d", re.MULTILINE)
_SESSIONS = itertools.count()


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream was like: seconds to its first token and to its end, messages with text."""

    first_seconds: float
    total_seconds: float
    messages: int


class StreamBroken(Exception):
    """An answer was not what the mock says."""


class Client(Protocol):
    """Runs streams on one server. `worker` tells the streams in parallel apart."""

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        """One stream, from its request to its last byte."""

    async def close(self) -> None:
        """Close the connections."""

    def new_round(self) -> None:
        """Forget what earlier rounds left, such as sessions."""


class _HttpStream(asyncio.Protocol):
    """A connection that is used for one request after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._done: asyncio.Future[float] | None = None
        self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's derive from no class

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._done and not self._done.done():
            self._done.set_exception(StreamBroken(f"connection closed: {self._parts[-1:]}"))

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if not self._first and _TOKEN.search(data):
            self._first = time.perf_counter()
        if data.endswith(b"0\r\n\r\n") and self._done and not self._done.done():
            self._done.set_result(time.perf_counter())

    async def request(self, request: bytes, expected: list[bytes]) -> Stream:
        if self.transport is None:
            raise StreamBroken("the connection is closed")
        self._parts.clear()
        self._first = 0.0
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.transport.write(request)
        ended = await self._done
        answer = b"".join(self._parts)
        if _TOKEN.findall(answer) != expected:
            raise StreamBroken(answer[:500].decode(errors="replace"))
        return Stream(self._first - began, ended - began, len(_EVENT.findall(answer)))


class HttpClient:
    """A client of the mock and of LiteLLM."""

    def __init__(self, port: int, tokens: int) -> None:
        self._port = port
        self._expected = [token(number).encode() for number in range(tokens)]
        self._connections: dict[int, _HttpStream] = {}
        self._requests = {False: self._request(MODEL), True: self._request(PACED_MODEL)}

    def _request(self, model: str) -> bytes:
        body = (
            f'{{"model":"{model}","messages":[{{"role":"user","content":"{TEXT}"}}],'
            '"stream":true,"stream_options":{"include_usage":true}}'
        )
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            "Authorization: Bearer none\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        connection = self._connections.get(worker)
        if connection is None or connection.transport is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_HttpStream, "127.0.0.1", self._port)
            self._connections[worker] = connection
        return await connection.request(self._requests[paced], self._expected)

    def new_round(self) -> None:
        pass

    async def close(self) -> None:
        for connection in self._connections.values():
            if connection.transport is not None:
                connection.transport.close()


class GrpcClient:
    """A client of ruvd and of the naive relay; with `sessions` each worker has one a round."""

    def __init__(self, address: str, tokens: int, *, sessions: bool) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = pb_grpc.SessionServiceStub(self._channel)
        self._expected = "".join(token(number) for number in range(tokens))
        self._sessions = sessions
        self._round = next(_SESSIONS)
        self._messages = [pb.Message(role=pb.ROLE_USER, content=TEXT)]

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        request = pb.CompleteRequest(
            session_id=f"bench-{self._round}-{worker}" if self._sessions else "",
            messages=self._messages,
            options=pb.CompletionOptions(model=PACED_MODEL if paced else MODEL),
        )
        first, texts, finished = 0.0, [], False
        began = time.perf_counter()
        async for response in self._stub.Complete(request):
            event = response.event
            if event.HasField("delta"):
                first = first or time.perf_counter()
                texts.append(event.delta.text)
            finished = event.HasField("finished")
        ended = time.perf_counter()
        if not finished or "".join(texts) != self._expected:
            raise StreamBroken(f"finished: {finished}, text: {''.join(texts)[:500]!r}")
        return Stream(first - began, ended - began, len(texts))

    def new_round(self) -> None:
        self._round = next(_SESSIONS)

    async def close(self) -> None:
        await self._channel.close()


@asynccontextmanager
async def closing(client: Client) -> AsyncIterator[Client]:
    try:
        yield client
    finally:
        await client.close()
