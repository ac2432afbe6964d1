"""HTTP/1.1 to one server, over connections that are kept open and used again.

It is written by hand because a stream sends a chunk for each token, and the cost of a chunk decides
the cost of a stream. A stream of 32 chunks takes 2 ms of CPU time with httpx's own transport, 1 ms
with aiohttp (half of it for building an almost constant request, and for a look at its parser after
each chunk), and 0.25 ms with this one. In the daemon, replacing aiohttp's took a stream from 3.3 to
2.6 ms (bench/README.md). llhttp parses the responses; the state machine is in `http1_connection`.
"""

import asyncio
import ssl
from collections import deque
from functools import partial
from pathlib import Path

import httpx

from ruvd.engines.http.http1_connection import Connection
from ruvd.engines.http.read_coalescing import ReadCoalescer
from ruvd.engines.http.transport import Request, Response

# Servers close idle connections after 5 s (uvicorn) to 75 s (nginx). A stale one costs time.
_IDLE_SECONDS = 15.0


class StaleConnection(httpx.RemoteProtocolError):
    """The server had closed an idle connection before the response's head."""


class Http1Transport:
    """Connections to one server, without a limit on their number.

    A response that is left before its end closes its connection, which stops the server; after its
    end the connection is used again. Connections to a Unix socket at `path` serve one request each.
    Raises httpx.ConnectError, ConnectTimeout, RemoteProtocolError and, for a connection that breaks
    in mid-response, ReadError.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self._tls = tls
        self._path = path
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._coalescer = ReadCoalescer()
        self._idle_timer: asyncio.TimerHandle | None = None

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        head = _request_head(request)
        connection = self._take_idle()
        was_idle = connection is not None
        if connection is None:
            connection = await self._connect(request)
        self._busy.add(connection)
        close = self._path is not None or b"\r\nConnection: close\r\n" in head
        try:
            await connection.exchange(head + request.content, close_after=close)
        except BaseException as error:
            self._close(connection)
            is_protocol_error = isinstance(error, httpx.RemoteProtocolError)
            if was_idle and is_protocol_error and not connection.has_received:
                raise StaleConnection(str(error)) from error
            raise
        return _Response(self, connection)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._coalescer.close()
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        self._busy.clear()

    def release(self, connection: Connection) -> None:
        """Keeps the connection of a response that has been left, or closes it."""
        if connection not in self._busy:
            return
        if not connection.is_reusable:
            self._close(connection)
            return
        self._busy.discard(connection)
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._idle_timer is None:
            self._idle_timer = loop.call_later(_IDLE_SECONDS, self._close_idle)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the last used is the most likely to be open
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        horizon = loop.time() - _IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= horizon:
            self._idle.popleft().close()
        self._idle_timer = None
        if self._idle:
            due = self._idle[0].idle_since + _IDLE_SECONDS
            self._idle_timer = loop.call_at(due, self._close_idle)

    def _close(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.close()

    async def _connect(self, request: Request) -> Connection:
        seconds, url = request.connect_seconds, request.url
        loop = asyncio.get_running_loop()
        make = partial(Connection, self._coalescer)
        try:
            async with asyncio.timeout(seconds):
                if self._path is not None:
                    _, connection = await loop.create_unix_connection(make, str(self._path))
                else:
                    is_https = url.scheme == "https"
                    _, connection = await loop.create_connection(
                        make,
                        url.host,
                        url.port or (443 if is_https else 80),
                        ssl=self._tls if is_https else None,
                        server_hostname=url.host if is_https else None,
                    )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {seconds:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection


class _Response:
    def __init__(self, transport: Http1Transport, connection: Connection) -> None:
        self.status = connection.status
        self.read = connection.read
        self._headers = connection.headers
        self._transport = transport
        self._connection: Connection | None = connection

    @property
    def is_whole(self) -> bool:
        return self._connection is None or self._connection.is_whole

    def header(self, name: str) -> str:
        return self._headers.get(name.lower().encode(), b"").decode("latin-1")

    async def aclose(self) -> None:
        # After the first call, the connection may serve another response.
        connection, self._connection = self._connection, None
        self.read = _read_closed
        if connection is not None:
            self._transport.release(connection)


async def _read_closed() -> bytes:
    raise httpx.StreamClosed


def _request_head(request: Request) -> bytes:
    """Returns the head. Raises httpx.LocalProtocolError for a header with a line break."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
        raise httpx.LocalProtocolError("a header of the request has a line break")
    return head + b"\r\n\r\n"
