"""One HTTP/1.1 connection: llhttp (by `httptools`) between asyncio's callbacks and a reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools
import httpx

from ruvd.engines.http.read_coalescing import CoalescedStream, ReadCoalescer

_MAX_HEAD_BYTES = 65_536
_MAX_BUFFERED_BYTES = 262_144
_INFORMATIONAL = range(100, 200)
_BODILESS = (204, 304)


class Connection(asyncio.Protocol):
    """One connection and the answer that is on it; also what llhttp calls back."""

    def __init__(self, pace: ReadCoalescer) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}  # by their names in lower case
        self.idle_since = 0.0
        self.untouched = True  # nothing of this answer has come
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        # Called by llhttp, without a frame for each chunk; after the answer's end nothing comes.
        self.on_body: Callable[[bytes], None] = self._parts.append
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
        self._paced = CoalescedStream(self._wake)
        self._flows = False

    # --- for the transport ------------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether another request may go over it."""
        return (
            self._complete
            and self._keeps
            and not self._paused  # what was left unread has more behind it
            and self._error is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer has been read."""
        return self._complete and not self._parts

    async def exchange(self, sent: bytes, *, once: bool) -> None:
        """Send a request, the last one if `once`, and wait for the head of its answer."""
        if self._transport is None:
            raise httpx.RemoteProtocolError("the server has closed the connection")
        self._once = once
        self.headers = {}
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
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from no class

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
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
            self._wake()
            return
        self._buffered += len(data)
        if self._buffered > _MAX_BUFFERED_BYTES and not self._paused and self._transport:
            if self._parts:
                self._paused = True
                self._transport.pause_reading()
            elif not self._complete:  # nobody would read it, and so go on
                text = "there is much beside the answer's body and nothing of it"
                self._fail(httpx.RemoteProtocolError(text))
        elif self._flows:
            self._pace.data_arrived(self._paced)
            return
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
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
        """An answer begins. More than was asked for is not read."""
        if self._complete:
            self._keeps = False
            raise httptools.HttpParserError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is there, of the answer or of what may come before it."""
        if self._parser is None or self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers = {}
            return
        self._keeps = not self._once and self._parser.should_keep_alive()
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        self._ends_with_connection = not framed and self.status not in _BODILESS
        self._has_head = True
        self._flow(flows=True)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._has_head:
            self._complete = True
            self._flow(flows=False)

    def _flow(self, *, flows: bool) -> None:
        self._pace.flowing += flows - self._flows
        self._flows = flows


def _broken(text: str, *, has_head: bool) -> httpx.TransportError:
    return httpx.ReadError(text) if has_head else httpx.RemoteProtocolError(text)
