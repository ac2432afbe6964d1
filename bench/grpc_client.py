"""A minimal client for server-streaming gRPC calls that reads and writes HTTP/2 frames itself.

`grpc.aio`'s client uses more CPU per stream than the relays that `bench/relay.py` measures, and it
shares the cores with them. This client sends a prepared request and reads only the frame headers
(RFC 9113) while a stream runs. It opens its own flow-control windows to their maximum, and keeps to
the server's window of the connection. Its requests have to fit the window of a stream. It does not
support compression, padding and header tables, which the benchmark's servers do not use.
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
_MAX_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_UPDATE_BYTES = 2**30
_FRAME_HEADER_BYTES = 9
_MESSAGE_PREFIX_BYTES = 5


class CallBroken(Exception):
    """The call failed, or its connection was closed before the end of the answer."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """Encodes a header field without indexing (RFC 7541, 6.2.2).

    The name and the value are below 127 bytes each.
    """
    return bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


@dataclass(eq=False, slots=True)
class Call:
    """A call: its answer so far, and the time at which `seek` first appeared in it."""

    seek: bytes
    done: asyncio.Future[None]
    first: float = 0.0
    parts: list[bytes] = field(default_factory=list)

    def messages(self) -> list[bytes]:
        """Returns the messages. Raises CallBroken if the last one is incomplete."""
        data, position, found = b"".join(self.parts), 0, []
        while position < len(data):
            start = position + _MESSAGE_PREFIX_BYTES
            position = start + int.from_bytes(data[position + 1 : start], "big")
            found.append(data[start:position])
        if position != len(data):
            raise CallBroken("the answer ends within a message")
        return found


class GrpcConnection(asyncio.Protocol):
    """One connection to a server, for any number of parallel calls."""

    def __init__(self, method: str) -> None:
        fields = {
            ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        self._headers = b"".join(_literal(*field) for field in fields.items())
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._buffer = b""
        self._unacknowledged = 0
        self._window = _DEFAULT_WINDOW  # how much the server still takes from all calls
        self._window_grew = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    async def call(self, message: bytes, seek: bytes) -> Call:
        """Runs one call to its end. Raises CallBroken."""
        prefixed = b"\0" + len(message).to_bytes(4, "big") + message
        while self._window < len(prefixed) and self.transport is not None:
            self._window_grew.clear()
            await self._window_grew.wait()
        if self.transport is None:
            raise CallBroken("the connection is closed")
        self._window -= len(prefixed)
        number, self._next = self._next, self._next + 2
        call = Call(seek, asyncio.get_running_loop().create_future())
        self._calls[number] = call
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
        # A cast, as uvloop's transports do not derive from this class.
        self.transport = cast("asyncio.Transport", transport)
        settings = _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _MAX_WINDOW.to_bytes(4, "big")
        self.transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        self._widen_window(_MAX_WINDOW - _DEFAULT_WINDOW)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._window_grew.set()
        for number in list(self._calls):
            self._fail(number, f"the connection was closed: {exc}")

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        position = 0
        while len(data) - position >= _FRAME_HEADER_BYTES:
            start = position + _FRAME_HEADER_BYTES
            end = start + int.from_bytes(data[position : position + 3], "big")
            if end > len(data):
                break
            kind, flags = data[position + 3], data[position + 4]
            number = int.from_bytes(data[position + 5 : start], "big")
            if kind == _DATA:
                self._take_data(number, data[start:end])
            if kind in (_DATA, _HEADERS):
                if flags & _END_STREAM:
                    self._finish(number)
            else:
                self._take_control_frame(kind, flags, number, data[start:end])
            position = end
        self._buffer = data[position:]

    def _take_data(self, number: int, payload: bytes) -> None:
        self._unacknowledged += len(payload)
        if self._unacknowledged > _UPDATE_BYTES:
            self._widen_window(self._unacknowledged)
            self._unacknowledged = 0
        if call := self._calls.get(number):
            call.parts.append(payload)
            if not call.first and call.seek in payload:
                call.first = time.perf_counter()

    def _finish(self, number: int) -> None:
        call = self._calls.get(number)
        if call and not call.done.done():
            call.done.set_result(None)

    def _take_control_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        assert self.transport is not None
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            answer = payload if kind == _PING else b""
            self.transport.write(_frame(kind, _ACK, 0, answer))
        elif kind == _WINDOW_UPDATE and not number:
            self._window += int.from_bytes(payload, "big")
            self._window_grew.set()
        elif kind == _RST_STREAM:
            self._fail(number, f"the stream was reset: {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            self.transport.close()

    def _widen_window(self, size: int) -> None:
        assert self.transport is not None
        self.transport.write(_frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big")))

    def _fail(self, number: int, reason: str) -> None:
        call = self._calls.get(number)
        if call and not call.done.done():
            call.done.set_exception(CallBroken(reason))


async def connect(address: str, method: str) -> GrpcConnection:
    """Connects to `unix:PATH` or `HOST:PORT`, for calls of one method."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return (await loop.create_unix_connection(lambda: GrpcConnection(method), path))[1]
    host, _, port = address.rpartition(":")
    return (await loop.create_connection(lambda: GrpcConnection(method), host, int(port)))[1]
