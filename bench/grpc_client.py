"""A client of server-streaming gRPC calls that costs next to nothing: HTTP/2 frames by hand.

`grpc.aio`'s own client takes more of a core for a stream than what `bench/relay.py` measures, and
has to share the cores with it. This one writes a request made before, reads the frames' heads
(RFC 9113) and nothing else while a stream runs; flow control is opened wide once. It knows nothing
of compression, padding and header tables, which no server of the benchmark uses toward it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_WIDE = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_REFRESH = 2**30
_HEAD_BYTES = 9
_PREFIX_BYTES = 5


class CallBroken(Exception):
    """The call or its connection ended before its end."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that no table keeps (RFC 7541, 6.2.2); both are below 127 bytes."""
    return bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


@dataclass(eq=False, slots=True)
class Call:
    """A call: what came, and when `seek` was in it."""

    seek: bytes
    done: asyncio.Future[None]
    first: float = 0.0
    parts: list[bytes] = field(default_factory=list)

    def messages(self) -> list[bytes]:
        """The messages. Raises CallBroken if the last one is not whole."""
        data, position, found = b"".join(self.parts), 0, []
        while position < len(data):
            start = position + _PREFIX_BYTES
            position = start + int.from_bytes(data[position + 1 : start], "big")
            found.append(data[start:position])
        if position != len(data):
            raise CallBroken("the answer ends within a message")
        return found


class GrpcConnection(asyncio.Protocol):
    """One connection to a server; as many calls side by side as it likes."""

    def __init__(self, method: str) -> None:
        fields = {
            ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        self._headers = b"".join(_literal(*each) for each in fields.items())
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._rest = b""
        self._read = 0
        self.transport: asyncio.Transport | None = None

    async def call(self, message: bytes, seek: bytes) -> Call:
        """One call, to its end. Raises CallBroken."""
        if self.transport is None:
            raise CallBroken("the connection is closed")
        number, self._next = self._next, self._next + 2
        call = Call(seek, asyncio.get_running_loop().create_future())
        self._calls[number] = call
        prefixed = b"\0" + len(message).to_bytes(4, "big") + message
        self.transport.write(
            _frame(_HEADERS, _END_HEADERS, number, self._headers)
            + _frame(_DATA, _END_STREAM, number, prefixed)
        )
        try:
            await call.done
        finally:
            self._calls.pop(number, None)
        return call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's derive from no class
        wide = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _WIDE.to_bytes(4, "big")
        self.transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, wide))
        self._widen(_WIDE - _DEFAULT_WINDOW)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for number in list(self._calls):
            self._break(number, f"the connection was closed: {exc}")

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        position = 0
        while len(data) - position >= _HEAD_BYTES:
            start = position + _HEAD_BYTES
            end = start + int.from_bytes(data[position : position + 3], "big")
            if end > len(data):
                break
            kind, flags = data[position + 3], data[position + 4]
            number = int.from_bytes(data[position + 5 : start], "big")
            if kind == _DATA:
                self._take(number, data[start:end])
            if kind in (_DATA, _HEADERS):
                if flags & _END_STREAM:
                    self._end(number)
            else:
                self._control(kind, flags, number, data[start:end])
            position = end
        self._rest = data[position:]

    def _take(self, number: int, payload: bytes) -> None:
        self._read += len(payload)
        if self._read > _REFRESH:
            self._widen(self._read)
            self._read = 0
        if call := self._calls.get(number):
            call.parts.append(payload)
            if not call.first and call.seek in payload:
                call.first = time.perf_counter()

    def _end(self, number: int) -> None:
        call = self._calls.get(number)
        if call and not call.done.done():
            call.done.set_result(None)

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        assert self.transport is not None
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            answer = payload if kind == _PING else b""
            self.transport.write(_frame(kind, _ACK, 0, answer))
        elif kind == _RST_STREAM:
            self._break(number, f"the stream was reset: {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            self.transport.close()

    def _widen(self, size: int) -> None:
        assert self.transport is not None
        self.transport.write(_frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big")))

    def _break(self, number: int, why: str) -> None:
        call = self._calls.get(number)
        if call and not call.done.done():
            call.done.set_exception(CallBroken(why))


async def connect(address: str, method: str) -> GrpcConnection:
    """Connect to `unix:PATH` or `HOST:PORT`, for calls of one method."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return (await loop.create_unix_connection(lambda: GrpcConnection(method), path))[1]
    host, _, port = address.rpartition(":")
    return (await loop.create_connection(lambda: GrpcConnection(method), host, int(port)))[1]
