"""A parser of requests that declines every upgrade to another protocol.

A client may offer an upgrade with any request, and a server that does not want it answers by
HTTP/1.1. Java's HTTP client offers HTTP/2 with every request over plain text. llhttp takes such a
head for the end of the request, so uvicorn loses the body (github.com/Kludex/uvicorn/issues/2722).
Here the head is parsed a second time, without the offer, and then the body.
"""

from typing import Protocol

import httptools

_OFFER = (b"upgrade", b"http2-settings")


class Connection(Protocol):
    """A connection of uvicorn's: httptools' callbacks, and the head as they have collected it."""

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None:
        """Begins a request."""

    def on_url(self, url: bytes) -> None:
        """Takes a piece of the request's target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""

    def on_headers_complete(self) -> None:
        """Ends the head."""

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""

    def on_message_complete(self) -> None:
        """Ends the request."""


class RequestParser:
    """Parses the requests of one connection, as uvicorn uses `httptools.HttpRequestParser`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # httptools looks its callbacks up by these names.
        self.on_message_begin = connection.on_message_begin
        self.on_url = connection.on_url
        self.on_header = connection.on_header
        self.on_body = connection.on_body
        self._parser = self._new()

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn sets it: what follows a request that closes the connection is passed over.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def on_headers_complete(self) -> None:
        """Ends the head, unless it has to be parsed again."""
        if not self._parser.should_upgrade():
            self._connection.on_headers_complete()
        elif self._parser.get_method() == b"CONNECT":
            raise ValueError("tunnels are not supported")  # uvicorn answers with 400

    def on_message_complete(self) -> None:
        """Ends the request, unless its head has to be parsed again."""
        if not self._parser.should_upgrade():
            self._connection.on_message_complete()

    def feed_data(self, data: bytes) -> None:
        """Parses what has come. Raises HttpParserError."""
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                head = self._head()
                self._parser = self._new()
                self._parser.feed_data(head)
            else:
                return

    def close(self) -> None:
        """Leaves the connection, so that no garbage collection is needed to free it."""
        del self._parser

    def _head(self) -> bytes:
        """Returns the head of the request without the offer of an upgrade."""
        version = self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self._connection.url, version)]
        for name, value in self._connection.headers:
            if name == b"connection":
                words = [word.strip() for word in value.split(b",")]
                kept = b", ".join(word for word in words if word.lower() not in _OFFER)
                lines.append(b"connection: " + (kept or b"keep-alive"))
            elif name not in _OFFER:
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def get_http_version(self) -> str:
        """Returns the version of the current request."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Returns the method of the current request."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the connection stays open after the current request."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Returns False, as no upgrade is made."""
        return False
