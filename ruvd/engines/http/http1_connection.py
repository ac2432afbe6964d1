"""One HTTP/1.1 connection, between asyncio's callbacks and the reader of a response.

llhttp (`httptools`) parses. It appends a chunk's body to a list without a Python frame of ours,
which is a part of the measured gain that `http1` names.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools
import httpx

from ruvd.engines.http.read_coalescing import CoalescedStream, ReadCoalescer

_MAX_HEAD_BYTES = 65_536
_MAX_BUFFERED_BYTES = 262_144
# About a millisecond's work.
_MAX_READ_BYTES = 16 << 10
# The passes of the loop for each such part. gRPC takes one new call at a time, in about five passes
# of the loop: with a part in each of them, new calls came slower than some callers made them, and
# waited in gRPC for seconds. Without other work they take a hundredth of its time.
_PASSES_PER_PART = 8
_INFORMATIONAL = range(100, 200)
_BODILESS = (204, 304)


class Connection(asyncio.Protocol):
    """One connection and its current response. It also has the callbacks of llhttp."""

    def __init__(self, coalescer: ReadCoalescer) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}  # names are in lower case
        self.idle_since = 0.0
        self.has_received = False  # any byte of the current response
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._has_rest = False
        # The callback of llhttp for the body. After the response's end there are no more calls.
        self.on_body: Callable[[bytes], None] = self._parts.append
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._has_head = False
        self._ends_with_connection = False
        self._keep_alive = False
        self._close_after = False
        self._is_complete = True
        self._is_paused = False
        self._error: Exception | None = None
        self._coalescer = coalescer
        self._stream = CoalescedStream(self._wake)
        self._is_active = False

    # --- for the transport ------------------------------------------------------------------

    @property
    def is_reusable(self) -> bool:
        """Whether another request may use it."""
        return (
            self._is_complete
            and self._keep_alive
            and not self._is_paused  # more data waits behind the unread body
            and self._error is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def is_whole(self) -> bool:
        """Whether all of the response has been read."""
        return self._is_complete and not self._parts

    async def exchange(self, request: bytes, *, close_after: bool) -> None:
        """Sends a request, the last one if `close_after`, and waits for its response's head."""
        if self._transport is None:
            raise httpx.RemoteProtocolError("the server has closed the connection")
        self._close_after = close_after
        self.headers = {}
        self.has_received = False
        self._parser = httptools.HttpResponseParser(self)
        # Two violations of the standard that real servers commit.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True
        )
        self._coalescer.start_answer(self._stream)
        self._parts.clear()
        self._has_rest = False
        self._buffered_bytes = self._head_bytes = 0
        self._has_head = self._is_complete = False
        self._keep_alive = self._ends_with_connection = False
        self._transport.write(request)
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait_for_wake()

    async def read(self) -> bytes:
        """Returns the body that has arrived since the last call, or a part of it; empty at its end.

        Everything else goes on between two parts: a server may send faster than this process reads.
        Several such streams take turns, or all of them together would stop everything else for a
        long time at each pass of the loop. A turn takes several passes.
        """
        if self._has_rest:
            async with self._coalescer.turn:
                for _ in range(_PASSES_PER_PART):
                    await asyncio.sleep(0)
        while not self._parts:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait_for_wake()
        parts = self._parts
        if self._buffered_bytes > _MAX_READ_BYTES and (part := self._first_part()):
            return part
        part = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered_bytes = 0
        self._has_rest = False
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return part

    def _first_part(self) -> bytes:
        """Takes and returns a part of what has arrived, or nothing if there is little left."""
        size = count = 0
        for part in self._parts:
            count += 1
            size += len(part)
            if size >= _MAX_READ_BYTES:
                break
        first = b"".join(self._parts[:count])
        rest = first[_MAX_READ_BYTES:]
        if not rest and count == len(self._parts):
            return b""
        self._parts[:count] = [rest] if rest else []
        self._has_rest = True
        return first[:_MAX_READ_BYTES]

    def close(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait_for_wake(self) -> None:
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
        self._set_active(active=False)
        self.close()

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._stream.connected(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.has_received = True
        if self._is_complete or self._parser is None:
            self._fail(httpx.RemoteProtocolError("the server sent more than one answer"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._fail(_read_error(str(error), has_head=self._has_head))
            self._keep_alive = False
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("the answer's head has no end"))
            self._wake()
            return
        self._buffered_bytes += len(data)
        if self._buffered_bytes > _MAX_BUFFERED_BYTES and not self._is_paused and self._transport:
            if self._parts:
                self._is_paused = True
                self._transport.pause_reading()
            elif not self._is_complete:  # without a part to read, nothing would resume reading
                text = "there is much beside the answer's body and nothing of it"
                self._fail(httpx.RemoteProtocolError(text))
        elif self._is_active:
            self._coalescer.data_arrived(self._stream)
            return
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._stream.disconnected()
        self._set_active(active=False)
        if not self._is_complete:
            if self._has_head and self._ends_with_connection and error is None:
                self._is_complete = True
            elif self._error is None:
                text = str(error) if error else "the connection was closed before the answer's end"
                self._error = _read_error(text, has_head=self._has_head)
        self._wake()

    # --- llhttp -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuses a second response, which was not requested."""
        if self._is_complete:
            self._keep_alive = False
            raise httptools.HttpParserError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores a header or a trailer."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Takes the response's head, or drops that of an informational response before it."""
        if self._parser is None or self._is_complete:
            return
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers = {}
            return
        self._keep_alive = not self._close_after and self._parser.should_keep_alive()
        is_framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        self._ends_with_connection = not is_framed and self.status not in _BODILESS
        self._has_head = True
        self._set_active(active=True)

    def on_message_complete(self) -> None:
        """Marks the response as complete."""
        if self._has_head:
            self._is_complete = True
            self._set_active(active=False)
            self._stream.end_rest()

    def _set_active(self, *, active: bool) -> None:
        self._coalescer.active_streams += active - self._is_active
        self._is_active = active


def _read_error(text: str, *, has_head: bool) -> httpx.TransportError:
    return httpx.ReadError(text) if has_head else httpx.RemoteProtocolError(text)
