"""HTTP/1.1 to one server: connections that are kept, each of which is `http1_connection`'s.

A stream of tokens is a chunk a token, and what each costs decides what a stream costs. Of the
transports that there are, httpx's own takes 2 ms of a core for a stream of 32 chunks, aiohttp's
1 ms, half of it for building a request that hardly changes and for a look at its parser after
each chunk; this one takes 0.25 ms. A response that is left before its end closes its connection,
which is what stops a server; one that was read whole is kept for the next request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import partial
from pathlib import Path

import httpx

from ruvd.engines.http.http1_connection import Connection
from ruvd.engines.http.read_coalescing import ReadCoalescer
from ruvd.engines.http.transport import Request, Response

# Servers close what is idle after 5 s (uvicorn) to 75 s (nginx); a stale one costs a round trip.
_IDLE_SECONDS = 15.0


class StaleConnection(httpx.RemoteProtocolError):
    """A connection that was kept had been closed before the answer's head."""


class Http1Transport:
    """Connections to one server, no bound on how many; those to a Unix socket at `path` serve one
    request each.

    Silence is the caller's to bound. Raises httpx.ConnectError, ConnectTimeout,
    RemoteProtocolError and, for a connection that breaks in the middle of an answer, ReadError.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self._tls = tls
        self._path = path
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._pace = ReadCoalescer()
        self._sweep: asyncio.TimerHandle | None = None

    async def send(self, request: Request) -> Response:
        """Send a request; return when the answer's head is there."""
        head = _head(request)
        connection = self._kept()
        was_kept = connection is not None
        if connection is None:
            connection = await self._connect(request)
        self._busy.add(connection)
        once = self._path is not None or b"\r\nConnection: close\r\n" in head
        try:
            await connection.exchange(head + request.content, once=once)
        except BaseException as error:
            self._drop(connection)
            if was_kept and isinstance(error, httpx.RemoteProtocolError) and connection.untouched:
                raise StaleConnection(str(error)) from error
            raise
        return _Response(self, connection)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._pace.close()
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        self._busy.clear()

    def release(self, connection: Connection) -> None:
        """A response has been left: after its end, or before."""
        if connection not in self._busy:
            return
        if not connection.reusable:
            self._drop(connection)
            return
        self._busy.discard(connection)
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(_IDLE_SECONDS, self._close_idle)

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the latest used is the likeliest to be open
            if connection.reusable:
                return connection
            connection.close()
        return None

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        horizon = loop.time() - _IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= horizon:
            self._idle.popleft().close()
        self._sweep = None
        if self._idle:
            due = self._idle[0].idle_since + _IDLE_SECONDS
            self._sweep = loop.call_at(due, self._close_idle)

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.close()

    async def _connect(self, request: Request) -> Connection:
        seconds, url = request.connect_seconds, request.url
        loop = asyncio.get_running_loop()
        make = partial(Connection, self._pace)
        try:
            async with asyncio.timeout(seconds):
                if self._path is not None:
                    _, made = await loop.create_unix_connection(make, str(self._path))
                else:
                    secure = url.scheme == "https"
                    _, made = await loop.create_connection(
                        make,
                        url.host,
                        url.port or (443 if secure else 80),
                        ssl=self._tls if secure else None,
                        server_hostname=url.host if secure else None,
                    )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {seconds:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return made


class _Response:
    """See `Response`."""

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
        connection, self._connection = self._connection, None
        self.read = _left
        if connection is not None:  # by now it may be another response's
            self._transport.release(connection)


async def _left() -> bytes:
    raise httpx.StreamClosed


def _head(request: Request) -> bytes:
    """The request's head as bytes. Raises httpx.LocalProtocolError for a header of two lines."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
        raise httpx.LocalProtocolError("a header of the request has a line break")
    return head + b"\r\n\r\n"
