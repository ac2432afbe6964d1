"""HTTP/2 by httpx's own transport, a request at a time on each connection.

httpcore does not reset a stream that is left before its end (seen with 1.0: the server goes on,
and nobody reads), and only leaving tells a server to stop generating. So requests do not share a
connection, and one that is left is closed; one that was read to its end is used again.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import httpx

_IDLE_SECONDS = 30.0


class Http2Transport(httpx.AsyncBaseTransport):
    """Connections to one server, as many as there are requests."""

    def __init__(self, *, tls: ssl.SSLContext, proxy: str | None) -> None:
        self._tls = tls
        self._proxy = proxy
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._busy: set[httpx.AsyncHTTPTransport] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection of its own."""
        connection = self._idle.pop() if self._idle else self._connection()
        self._busy.add(connection)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            self._busy.discard(connection)
            await connection.aclose()
            raise
        response.stream = _Body(self, connection, response.stream)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        while connections := [*self._idle, *self._busy]:
            self._idle.clear()
            self._busy.clear()
            for connection in connections:
                await connection.aclose()

    async def release(self, connection: httpx.AsyncHTTPTransport, *, whole: bool) -> None:
        """A response has been left: after its end, or before."""
        if connection not in self._busy:
            return
        self._busy.discard(connection)
        if whole:
            self._idle.append(connection)
        else:
            await connection.aclose()

    def _connection(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            http2=True,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_IDLE_SECONDS),
            proxy=self._proxy,
            trust_env=False,
        )


class _Body(httpx.AsyncByteStream):
    def __init__(
        self,
        transport: Http2Transport,
        connection: httpx.AsyncHTTPTransport,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._stream = stream
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._stream, httpx.AsyncByteStream):
            async for part in self._stream:
                yield part
        self._whole = True

    async def aclose(self) -> None:
        try:
            if isinstance(self._stream, httpx.AsyncByteStream):
                await self._stream.aclose()
        finally:
            await self._transport.release(self._connection, whole=self._whole)
