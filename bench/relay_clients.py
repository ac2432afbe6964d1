"""The clients of `bench/relay.py`: each call runs one stream and checks that it is complete.

The clients share the machine's cores with the servers that they measure, so they do as little work
as possible. The HTTP clients send a prepared request and search the answer for bytes; they parse no
JSON. The gRPC client parses its messages, which protobuf does in C.
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
_CHUNK_END = re.compile(rb"\r\n[0-9a-f]+\r\n")
_RESPONSE_ID = re.compile(rb'"id": ?"(resp_[^"]+)"')
# The defaults of a session's context window: at most 10 exchanges, of which a trim keeps 3. A chain
# of responses and a client's own history are as long, so that all prompts are alike.
_MAX_EXCHANGES, _KEEP_EXCHANGES = 10, 3
_ROUNDS = itertools.count()
_METHOD = "/ruvd.v1.SessionService/Complete"


@dataclass(frozen=True, slots=True)
class Stream:
    """One finished stream: seconds to its first token and to its end, messages with text."""

    first_seconds: float
    total_seconds: float
    messages: int


class StreamBroken(Exception):
    """An answer differs from the mock's."""


class Client(Protocol):
    """Runs streams on one server; `worker` is the number of one of the parallel streams."""

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        """Runs one stream, from its request to its last byte."""

    async def close(self) -> None:
        """Closes the connections."""

    def new_round(self) -> None:
        """Forgets the state of earlier rounds, such as sessions."""

    def use_connections(self, *, one_each: bool) -> None:
        """Gives each parallel stream a connection of its own, or one to all, if that can be."""


class _HttpStream(asyncio.Protocol):
    """A connection for one request after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._done: asyncio.Future[float] | None = None
        self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as uvloop's transports do not derive from this class.
        self.transport = cast("asyncio.Transport", transport)

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
        """Sends a request and returns its stream and the complete answer."""
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
            self.transport.close()  # the rest of this answer must not reach another request
            raise
        answer = b"".join(self._parts)
        tokens = _TOKEN.findall(answer)
        if tokens != expected:  # a chunk may end within a token
            tokens = _TOKEN.findall(_CHUNK_END.sub(b"", answer))
        if tokens != expected:
            raise StreamBroken(answer[:500].decode(errors="replace"))
        return Stream(self._first - began, ended - began, len(tokens)), answer


class HttpClient:
    """A client of the chat completions API, for the mock and the gateways."""

    path = "/v1/chat/completions"

    def __init__(self, port: int, tokens: int, *, paced_model: str = PACED_MODEL) -> None:
        self._port = port
        self._models = {False: MODEL, True: paced_model}
        self._expected = [token(number).encode() for number in range(tokens)]
        self._connections: dict[int, _HttpStream] = {}
        self._requests = {paced: self._request(self._body(paced)) for paced in (False, True)}

    def _body(self, paced: bool, history: str = "") -> str:  # noqa: FBT001  the key of the requests
        return (
            f'{{"model":"{self._models[paced]}",'
            f'"messages":[{history}{{"role":"user","content":"{TEXT}"}}],'
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

    def use_connections(self, *, one_each: bool) -> None:
        """Does nothing, because a connection of HTTP/1.1 serves one stream at a time."""

    async def close(self) -> None:
        for connection in self._connections.values():
            if connection.transport is not None:
                connection.transport.close()


class HistoryClient(HttpClient):
    """A client of the chat completions API that sends the history, as much of it as ruvd sends."""

    def __init__(self, port: int, tokens: int, *, paced_model: str = PACED_MODEL) -> None:
        super().__init__(port, tokens, paced_model=paced_model)
        answer = b"".join(self._expected).decode()
        exchange = (
            f'{{"role":"user","content":"{TEXT}"}},{{"role":"assistant","content":"{answer}"}},'
        )
        # All messages are the same, so the number of exchanges determines the history.
        self._history_requests = {
            paced: [
                self._request(self._body(paced, exchange * count))
                for count in range(_MAX_EXCHANGES + 1)
            ]
            for paced in (False, True)
        }
        self._exchanges: dict[int, int] = {}

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        connection = await self._connection(worker)
        count = self._exchanges.get(worker, 0)
        stream, _ = await connection.request(self._history_requests[paced][count], self._expected)
        self._exchanges[worker] = count + 1 if count < _MAX_EXCHANGES else _KEEP_EXCHANGES
        return stream

    def new_round(self) -> None:
        self._exchanges.clear()


class ResponsesClient(HttpClient):
    """A client of the Responses API, for a gateway that keeps the history.

    Each worker continues its previous response; after ten responses it starts a new chain.
    """

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
        length = (length + 1) % _MAX_EXCHANGES
        self._chains[worker] = (length, found[1].decode() if length else "")
        return stream

    def new_round(self) -> None:
        self._chains.clear()


class GrpcClient:
    """A client of ruvd and of the naive relay over one connection, or over one for each worker.

    With `sessions` each worker has its own session in each round.
    """

    def __init__(
        self, address: str, tokens: int, *, sessions: bool, paced_model: str = PACED_MODEL
    ) -> None:
        self._models = {False: MODEL, True: paced_model}
        self.address = address
        self._connections: dict[int, GrpcConnection] = {}
        self._one_each = False
        self._expected = "".join(token(number) for number in range(tokens))
        self._sessions = sessions
        self._round = next(_ROUNDS)
        self._messages = [pb.Message(role=pb.ROLE_USER, content=TEXT)]

    async def stream(self, worker: int, *, paced: bool) -> Stream:
        request = pb.CompleteRequest(
            session_id=f"bench-{self._round}-{worker}" if self._sessions else "",
            messages=self._messages,
            options=pb.CompletionOptions(model=self._models[paced]),
        )
        connection = await self._connected(worker if self._one_each else 0)
        began = time.perf_counter()
        try:
            call = await connection.call(request.SerializeToString(), token(0).encode())
        except CallBroken as failure:
            raise StreamBroken(str(failure)) from failure
        ended = time.perf_counter()
        events = [pb.CompleteResponse.FromString(message).event for message in call.messages()]
        texts = [event.delta.text for event in events if event.HasField("delta")]
        finished = bool(events) and events[-1].HasField("finished")
        if not finished or "".join(texts) != self._expected:
            raise StreamBroken(f"finished: {finished}, text: {''.join(texts)[:500]!r}")
        return Stream(call.first - began, ended - began, len(texts))

    async def _connected(self, number: int) -> GrpcConnection:
        connection = self._connections.get(number)
        if connection is None or connection.transport is None:
            connection = self._connections[number] = await connect(self.address, _METHOD)
        return connection

    def new_round(self) -> None:
        self._round = next(_ROUNDS)

    def use_connections(self, *, one_each: bool) -> None:
        self._one_each = one_each
        if not one_each:
            for number in [number for number in self._connections if number]:
                self._close(self._connections.pop(number))

    async def close(self) -> None:
        for connection in self._connections.values():
            self._close(connection)

    @staticmethod
    def _close(connection: GrpcConnection) -> None:
        if connection.transport is not None:
            connection.transport.close()


@asynccontextmanager
async def closing(client: Client) -> AsyncIterator[Client]:
    """Closes the client's connections when the block is left."""
    try:
        yield client
    finally:
        await client.close()
