"""A request, its response, and what carries them, as the engines see HTTP.

What goes wrong on the way is raised as httpx names it, whoever carries.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import httpx


@dataclass(slots=True)
class Request:
    """One request. `headers` are all that go out, Host and Content-Length too; `connect_seconds`
    bounds a new connection."""

    method: str
    url: httpx.URL
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes = b""
    connect_seconds: float | None = None


class Response(Protocol):
    """The head of an answer, and the way to its body."""

    status: int

    @property
    def is_whole(self) -> bool:
        """Whether all of it is known to be there, so that another `read` would say so at once."""

    def header(self, name: str) -> str:
        """A header's value; empty if there is none."""

    async def read(self) -> bytes:
        """The next part of the body, as it came; empty after the last."""

    async def aclose(self) -> None:
        """Leave it. Before its end that closes the connection, which is what stops a server."""


class Transport(Protocol):
    """Connections to one server."""

    async def send(self, request: Request) -> Response:
        """Send a request; return when the answer's head is there."""

    async def aclose(self) -> None:
        """Close all connections."""


class HttpxTransport:
    """One of httpx's transports. Silence is not its to bound."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        seconds = request.connect_seconds
        timeout = {"connect": seconds, "pool": seconds, "read": None, "write": None}
        sent = httpx.Request(
            request.method,
            request.url,
            headers=list(request.headers),
            stream=httpx.ByteStream(request.content),
            extensions={"timeout": timeout},
        )
        return _HttpxResponse(await self._transport.handle_async_request(sent))

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._transport.aclose()


class _HttpxResponse:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self._response = response
        # It is a generator, whatever its type says, and has to be closed like one.
        stream = cast("httpx.AsyncByteStream", response.stream)
        self._parts = cast("AsyncGenerator[bytes, None]", aiter(stream))

    @property
    def is_whole(self) -> bool:
        return False

    def header(self, name: str) -> str:
        return str(self._response.headers.get(name, ""))

    async def read(self) -> bytes:
        async for part in self._parts:
            if part:
                return part
        return b""

    async def aclose(self) -> None:
        try:
            await self._parts.aclose()
        finally:
            await self._response.aclose()
