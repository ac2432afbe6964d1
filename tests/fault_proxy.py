"""A proxy that cuts gRPC connections where a test wants it, by counting the answers' messages.

It reads just enough of HTTP/2 and gRPC to know when the n-th message of a response stream has
passed: frame headers and message lengths. Nothing is decrypted or decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_DATA = 0
_HEADER = 9
_PREFIX = 5  # a gRPC message: a flag and four bytes of length
# gRPC drops what has come and was not handed over when its connection breaks. A cut after a
# message is one that was read; otherwise a client that is always cut might never get anywhere.
_READ_SECONDS = 0.1


class FaultProxy:
    """Relays to `target`, a `host:port`, and aborts connections.

    After `after` messages on one response stream its connection is aborted; with 0, before the
    first. It happens `times` times, None for always. While `closed` is set, what connects is
    aborted at once, and setting it aborts what is there.
    """

    def __init__(self, target: str, *, after: int | None = None, times: int | None = 1) -> None:
        self.target = target
        self.address = ""
        self.cuts = 0
        self._after = after
        self._times = times
        self._closed = False
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def closed(self) -> bool:
        """Whether nothing comes through."""
        return self._closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        self._closed = closed
        if closed:
            for writer in self._open:
                writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listen on a loopback port; `address` says which."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            self.closed = True
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        self._open.add(writer)
        try:
            if self._closed:
                return
            upstream_reader, upstream = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        else:
            self._open.add(upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, upstream, writer))
                group.create_task(self._answer(upstream_reader, writer, upstream))
            self._open.discard(upstream)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        back.transport.abort()

    async def _answer(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        streams: dict[int, _Messages] = {}
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                header = await source.readexactly(_HEADER)
                length, kind = int.from_bytes(header[:3]), header[3]
                payload = await source.readexactly(length)
                if kind == _DATA and self._may_cut():
                    stream = streams.setdefault(int.from_bytes(header[5:]), _Messages())
                    end = stream.end_of(self._after or 0, payload)
                    if end is not None:
                        self.cuts += 1
                        if end:
                            sink.write(end.to_bytes(3) + header[3:] + payload[:end])
                            await sink.drain()
                            await asyncio.sleep(_READ_SECONDS)
                        break
                sink.write(header + payload)
                await sink.drain()
        if not sink.transport.is_closing():
            sink.close()  # what was written still goes out, unlike with abort
        back.transport.abort()

    def _may_cut(self) -> bool:
        return self._after is not None and (self._times is None or self.cuts < self._times)


class _Messages:
    """The messages of one response stream so far."""

    def __init__(self) -> None:
        self._count = 0
        self._missing = 0
        self._prefix = b""

    def end_of(self, wanted: int, data: bytes) -> int | None:
        """Where in `data` the wanted message ends, 0 for before the first; None if not in it."""
        if wanted == 0:
            return 0
        at = 0
        while at < len(data):
            if self._missing == 0:
                take = _PREFIX - len(self._prefix)
                self._prefix += data[at : at + take]
                at += take
                if len(self._prefix) < _PREFIX:
                    return None
                self._missing = int.from_bytes(self._prefix[1:])
                self._prefix = b""
            take = min(self._missing, len(data) - at)
            self._missing -= take
            at += take
            if self._missing == 0:
                self._count += 1
                if self._count == wanted:
                    return at
        return None
