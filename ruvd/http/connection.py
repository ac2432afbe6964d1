"""One HTTP/1.1 connection: uvicorn's, with the bounds that uvicorn does not have.

The head of a request (its first line and headers) has to come in time and has a largest size. The
number of connections is bounded. The certificate of a TLS client is in the scope of each request,
for the check of the caller. When the client goes, every request that is not answered hears of it:
uvicorn tells only the last one of those that were sent without waiting (pipelining).
"""

import asyncio
import ssl
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ruvd.http.request_parser import RequestParser

# A bearer token may have 16 KiB.
MAX_HEAD_BYTES = 64 << 10
HEAD_SECONDS = 20.0
KEEP_ALIVE_SECONDS = 60
MAX_CONNECTIONS = 1000
# The name of the scope's extension with the client's certificate as PEM.
CLIENT_CERTIFICATE = "ruvd.client_certificate"

_PHRASES = {
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class BoundedConnection(HttpToolsProtocol):
    """A connection whose requests have bounded heads."""

    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0  # of the head so far, without its first piece
    _fields_bytes = 0  # of the first line and the headers
    _certificate = b""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parser = RequestParser(self)
        in_uvicorn: Any = self._parser  # where another class is declared
        self.parser = in_uvicorn
        self._requests: deque[RequestResponseCycle] = deque()  # in order, not all are answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses the connection if there are too many, and waits for its first request."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "too many connections; try again")
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and (certificate := tls.getpeercert(binary_form=True)):
            self._certificate = ssl.DER_cert_to_PEM_cert(certificate).encode()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait for a request, and tells the requests that the client has gone."""
        self._stop_timer()
        super().connection_lost(exc)
        self._parser.close()
        for request in self._requests:
            request.disconnected = request.disconnected or not request.response_complete
            request.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parses what has come. A head that is too large is refused."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._head_timer is None and is_idle:
            self._await_head()  # uvicorn has stopped its own timer for idle connections
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's headers have more than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._fields_bytes = 0
        scope: Any = self.scope
        scope["extensions"] = {CLIENT_CERTIFICATE: self._certificate}

    def on_url(self, url: bytes) -> None:
        """Takes a piece of the request's target."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts the handling of the request."""
        self._stop_timer()
        self._in_head = False
        super().on_headers_complete()
        while self._requests and self._requests[0].response_complete:
            self._requests.popleft()
        self._requests.append(self.cycle)

    def _count(self, field: bytes) -> None:
        """Raises ValueError for a head that is too large, which uvicorn answers with 400."""
        self._fields_bytes += len(field)
        if self._fields_bytes > MAX_HEAD_BYTES:
            raise ValueError

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._on_head_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_late(self) -> None:
        self._refuse(408, f"the request's headers did not come within {HEAD_SECONDS:g} s")

    def _refuse(self, status: int, text: str) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = text.encode()
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
