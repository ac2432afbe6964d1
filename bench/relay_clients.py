"""The clients of `bench/relay.py`: one stream each call, checked to be whole.

They are as cheap as they can be made, because they have to share the machine with what they
measure. The HTTP clients write a request made before and look for bytes in the answer, they parse
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

from bench.grpc_client import CallBroken, GrpcConnection, connect
from bench.mock_upstream import MODEL, PACED_MODEL, token
from ruvd.v1 import session_service_pb2 as pb

TEXT = "Tell me in a few words what a sidecar is, and when one is better than a library. " * 3
_TOKEN = re.compile(rb'"(?:content|delta)": ?"( word\d\d)"')
_RESPONSE_ID = re.compile(rb'"id": ?"(resp_[^"]+)"')
# A session's context window has at most so many exchanges, a trim keeps the last of them: so a
# chain of responses and a client's own history have them too.
_CHAIN, _KEPT = 10, 3
_SESSIONS = itertools.count()
_METHOD = "/ruvd.v1.SessionService/Complete"


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

    async def request(self, request: bytes, expected: list[bytes]) -> tuple[Stream, bytes]:
        """Write a request; what its stream was like, and the whole answer."""
        if self.transport is None:
            raise StreamBroken("the connection is closed")
        self._parts.clear()
        self._first = 0.0
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.transport.write(request)
        try:
            ended = await self._done
        except asyncio.CancelledError:
            self.transport.close()  # what is still to come belongs to no other request
            raise
        answer = b"".join(self._parts)
        tokens = _TOKEN.findall(answer)
        if tokens != expected:
            raise StreamBroken(answer[:500].decode(errors="replace"))
        return Stream(self._first - began, ended - began, len(tokens)), answer


class HttpClient:
    """A client of chat completions: of the mock and of the gateways."""

    path = "/v1/chat/completions"

    def __init__(self, port: int, tokens: int, *, paced_model: str = PACED_MODEL) -> None:
        self._port = port
        self._models = {False: MODEL, True: paced_model}
        self._expected = [token(number).encode() for number in range(tokens)]
        self._connections: dict[int, _HttpStream] = {}
        self._requests = {paced: self._request(self._body(paced)) for paced in (False, True)}

    def _body(self, paced: bool, past: str = "") -> str:  # noqa: FBT001  as the key of the requests
        return (
            f'{{"model":"{self._models[paced]}",'
            f'"messages":[{past}{{"role":"user","content":"{TEXT}"}}],'
            '"stream":true,"stream_options":{"include_usage":true}}'
        )

    def _request(self, body: str) -> bytes:
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            "Authorization: Bearer none\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        connection = await self._connection(worker)
        return (await connection.request(self._requests[paced], self._expected))[0]

    async def _connection(self, worker: int) -> _HttpStream:
        connection = self._connections.get(worker)
        if connection is None or connection.transport is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_HttpStream, "127.0.0.1", self._port)
            self._connections[worker] = connection
        return connection

    def new_round(self) -> None:
        pass

    async def close(self) -> None:
        for connection in self._connections.values():
            if connection.transport is not None:
                connection.transport.close()


class HistoryClient(HttpClient):
    """A client of chat completions that holds its conversations itself, as it has to where a
    gateway keeps none: each worker sends the exchanges before, as many as ruvd sends of a session.
    """

    def __init__(self, port: int, tokens: int, *, paced_model: str = PACED_MODEL) -> None:
        super().__init__(port, tokens, paced_model=paced_model)
        answer = b"".join(self._expected).decode()
        exchange = (
            f'{{"role":"user","content":"{TEXT}"}},{{"role":"assistant","content":"{answer}"}},'
        )
        # What is said is always the same, so a history is known by its length.
        self._turns = {
            paced: [
                self._request(self._body(paced, exchange * count)) for count in range(_CHAIN + 1)
            ]
            for paced in (False, True)
        }
        self._exchanges: dict[int, int] = {}

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        connection = await self._connection(worker)
        count = self._exchanges.get(worker, 0)
        stream, _ = await connection.request(self._turns[paced][count], self._expected)
        self._exchanges[worker] = count + 1 if count < _CHAIN else _KEPT
        return stream

    def new_round(self) -> None:
        self._exchanges.clear()


class ResponsesClient(HttpClient):
    """A client of the Responses API, where a gateway keeps the history: each worker goes on with
    its last response, ten times; then it begins anew."""

    path = "/v1/responses"

    def __init__(self, port: int, tokens: int, *, paced_model: str = PACED_MODEL) -> None:
        super().__init__(port, tokens, paced_model=paced_model)
        self._chains: dict[int, tuple[int, str]] = {}

    def _body(self, paced: bool, previous: str = "") -> str:  # noqa: FBT001
        chained = f',"previous_response_id":"{previous}"' if previous else ""
        return (
            f'{{"model":"{self._models[paced]}","input":"{TEXT}","stream":true,"store":true'
            f"{chained}}}"
        )

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        connection = await self._connection(worker)
        length, previous = self._chains.get(worker, (0, ""))
        request = self._request(self._body(paced, previous))
        stream, answer = await connection.request(request, self._expected)
        found = _RESPONSE_ID.search(answer)
        if found is None:
            raise StreamBroken("a response without an id")
        length = (length + 1) % _CHAIN
        self._chains[worker] = (length, found[1].decode() if length else "")
        return stream

    def new_round(self) -> None:
        self._chains.clear()


class GrpcClient:
    """A client of ruvd and of the naive relay, over one connection; with `sessions` each worker
    has one a round."""

    def __init__(
        self, address: str, tokens: int, *, sessions: bool, paced_model: str = PACED_MODEL
    ) -> None:
        self._models = {False: MODEL, True: paced_model}
        self._address = address
        self._connection: GrpcConnection | None = None
        self._expected = "".join(token(number) for number in range(tokens))
        self._sessions = sessions
        self._round = next(_SESSIONS)
        self._messages = [pb.Message(role=pb.ROLE_USER, content=TEXT)]

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        request = pb.CompleteRequest(
            session_id=f"bench-{self._round}-{worker}" if self._sessions else "",
            messages=self._messages,
            options=pb.CompletionOptions(model=self._models[paced]),
        )
        connection = await self._connected()
        began = time.perf_counter()
        try:
            call = await connection.call(request.SerializeToString(), token(0).encode())
        except CallBroken as failure:
            raise StreamBroken(str(failure)) from failure
        ended = time.perf_counter()
        events = [pb.CompleteResponse.FromString(each).event for each in call.messages()]
        texts = [event.delta.text for event in events if event.HasField("delta")]
        finished = bool(events) and events[-1].HasField("finished")
        if not finished or "".join(texts) != self._expected:
            raise StreamBroken(f"finished: {finished}, text: {''.join(texts)[:500]!r}")
        return Stream(call.first - began, ended - began, len(texts))

    async def _connected(self) -> GrpcConnection:
        if self._connection is None or self._connection.transport is None:
            self._connection = await connect(self._address, _METHOD)
        return self._connection

    def new_round(self) -> None:
        self._round = next(_SESSIONS)

    async def close(self) -> None:
        if self._connection and self._connection.transport:
            self._connection.transport.close()


@asynccontextmanager
async def closing(client: Client) -> AsyncIterator[Client]:
    try:
        yield client
    finally:
        await client.close()
