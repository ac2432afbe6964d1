"""HTTP as the engines use it: a request, its response, and the transport between them.

Every transport raises httpx's exceptions.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import httpx


@dataclass(slots=True)
class Request:
    """One request. `headers` are complete, with Host and Content-Length; `connect_seconds` limits
    connecting."""

    method: str
    url: httpx.URL
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes = b""
    connect_seconds: float | None = None


class Response(Protocol):
    """The head of a response, and access to its body."""

    status: int

    @property
    def is_whole(self) -> bool:
        """Whether the body is known to have been read, so that `read` would return at once."""

    def header(self, name: str) -> str:
        """Returns a header's value, empty if there is none."""

    async def read(self) -> bytes:
        """Returns the next part of the body as it arrived, empty after the last."""

    async def aclose(self) -> None:
        """Leaves the response. Before its end this closes the connection, which stops a server."""


class Transport(Protocol):
    """Connections to one server. Timeouts for reading are the caller's."""

    async def send(self, request: Request) -> Response:
        """Sends a request and returns when the response's head has arrived."""

    async def aclose(self) -> None:
        """Closes all connections."""


class HttpxTransport:
    """A transport of httpx's."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        seconds = request.connect_seconds
        timeout = {"connect": seconds, "pool": seconds, "read": None, "write": None}
        httpx_request = httpx.Request(
            request.method,
            request.url,
            headers=list(request.headers),
            stream=httpx.ByteStream(request.content),
            extensions={"timeout": timeout},
        )
        return _HttpxResponse(await self._transport.handle_async_request(httpx_request))

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._transport.aclose()


class _HttpxResponse:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self._response = response
        # The stream's iterator is a generator, whatever its type says, and must be closed as one.
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
