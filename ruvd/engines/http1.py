"""HTTP/1.1 to one server: llhttp (by `httptools`) under httpx's transport API.

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
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import cast

import httptools
import httpx

from ruvd.engines.pace import Pace, Paced

# Servers close what is idle after 5 s (uvicorn) to 75 s (nginx); a stale one costs a round trip.
_IDLE_SECONDS = 15.0
_MAX_HEAD_BYTES = 65_536
_MAX_BUFFERED_BYTES = 262_144
_INFORMATIONAL = range(100, 200)
_BODILESS = (204, 304)


class StaleConnection(httpx.RemoteProtocolError):
    """A connection that was kept had been closed before the answer's head."""


class Http1Transport(httpx.AsyncBaseTransport):
    """Connections to one server, no bound on how many; those to a Unix socket at `path` serve one
    request each.

    A request's content is bytes. `connect` of its time-outs is kept, silence is the caller's to
    bound. Raises
    httpx.ConnectError, ConnectTimeout, RemoteProtocolError and, for a connection that breaks in
    the middle of an answer, ReadError.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self._tls = tls
        self._path = path
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._pace = Pace()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return when the answer's head is there."""
        head = _head(request)
        sent = head + b"".join(cast("httpx.ByteStream", request.stream))
        connection = self._kept()
        was_kept = connection is not None
        if connection is None:
            connection = await self._connect(request)
        self._busy.add(connection)
        once = self._path is not None or b"\r\nConnection: close\r\n" in head
        try:
            await connection.exchange(sent, once=once)
        except BaseException as error:
            self._drop(connection)
            if was_kept and isinstance(error, httpx.RemoteProtocolError) and connection.untouched:
                raise StaleConnection(str(error)) from error
            raise
        return httpx.Response(
            connection.status, headers=connection.headers, stream=_Body(self, connection)
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._pace.close()
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        self._busy.clear()

    def release(self, connection: _Connection) -> None:
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

    def _kept(self) -> _Connection | None:
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

    def _drop(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        connection.close()

    async def _connect(self, request: httpx.Request) -> _Connection:
        seconds = request.extensions.get("timeout", {}).get("connect")
        loop, url = asyncio.get_running_loop(), request.url
        make = partial(_Connection, self._pace)
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


class _Connection(asyncio.Protocol):
    """One connection and the answer that is on it; also what llhttp calls back."""

    def __init__(self, pace: Pace) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.idle_since = 0.0
        self.untouched = True  # nothing of this answer has come
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._buffered = 0
        self._head_bytes = 0
        self._has_head = False
        self._ends_with_connection = False
        self._keeps = False
        self._once = False
        self._complete = True
        self._paused = False
        self._error: Exception | None = None
        self._pace = pace
        self._paced = Paced(self._wake)
        self._flows = False

    # --- for the transport ------------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether another request may go over it."""
        return (
            self._complete
            and self._keeps
            and self._error is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    async def exchange(self, sent: bytes, *, once: bool) -> None:
        """Send a request, the last one if `once`, and wait for the head of its answer."""
        if self._transport is None:
            raise httpx.RemoteProtocolError("the server has closed the connection")
        self._once = once
        self.headers = []
        self.untouched = True
        self._parser = httptools.HttpResponseParser(self)
        # Two things that the standard forbids, and servers do.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True
        )
        self._paced.begin()
        self._parts.clear()
        self._buffered = self._head_bytes = 0
        self._has_head = self._complete = self._keeps = self._ends_with_connection = False
        self._transport.write(sent)
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._news()

    async def read(self) -> bytes:
        """What has come of the body since; empty at its end."""
        while not self._parts:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._news()
        parts = self._parts
        part = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return part

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._flow(flows=False)
        self.close()

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from no class

    def data_received(self, data: bytes) -> None:
        self.untouched = False
        if self._complete or self._parser is None:
            # Nobody has asked for it.
            self._fail(httpx.RemoteProtocolError("the server sent more than one answer"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail(_broken(str(error), has_head=self._has_head))
            self._keeps = False
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("the answer's head has no end"))
        elif self._buffered > _MAX_BUFFERED_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        elif self._flows:
            self._pace.news(self._paced)
            return
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._flow(flows=False)
        if not self._complete:
            if self._has_head and self._ends_with_connection and error is None:
                self._complete = True
            elif self._error is None:
                text = str(error) if error else "the connection was closed before the answer's end"
                self._error = _broken(text, has_head=self._has_head)
        self._wake()

    # --- what llhttp has read ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._keeps = False  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser is None or self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers = []
            return
        names = {name.lower() for name, _ in self.headers}
        self._keeps = not self._once and self._parser.should_keep_alive()
        framed = b"content-length" in names or b"transfer-encoding" in names
        self._ends_with_connection = not framed and self.status not in _BODILESS
        self._has_head = True
        self._flow(flows=True)

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._parts.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True
            self._flow(flows=False)

    def _flow(self, *, flows: bool) -> None:
        self._pace.flowing += flows - self._flows
        self._flows = flows


class _Body(httpx.AsyncByteStream):
    def __init__(self, transport: Http1Transport, connection: _Connection) -> None:
        self._transport = transport
        self._connection = connection

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while part := await self._connection.read():
            yield part

    async def aclose(self) -> None:
        self._transport.release(self._connection)


def _head(request: httpx.Request) -> bytes:
    """The request's head as bytes. Raises httpx.LocalProtocolError for a header of two lines."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
        raise httpx.LocalProtocolError("a header of the request has a line break")
    return head + b"\r\n\r\n"


def _broken(text: str, *, has_head: bool) -> httpx.TransportError:
    return httpx.ReadError(text) if has_head else httpx.RemoteProtocolError(text)
