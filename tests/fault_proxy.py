"""A proxy that cuts gRPC connections after a chosen message of a response stream.

It parses only frame headers of HTTP/2 and message lengths of gRPC, by which it counts the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_DATA = 0
_HEADER = 9
_PREFIX = 5  # a gRPC message: a flag and four bytes of length
# When a connection breaks, gRPC drops messages that it has received and not yet delivered. So a cut
# waits until the message before it was read, or else a client might never advance.
_READ_SECONDS = 0.1


class FaultProxy:
    """Relays to `target`, a `host:port`, and aborts connections.

    After `after` messages on a response stream its connection is aborted; 0 means before the first.
    This happens `times` times, None for always. While `closed` is set, new connections are aborted
    at once. Setting it aborts the open ones.
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
        """Whether all connections are aborted."""
        return self._closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        self._closed = closed
        if closed:
            for writer in self._open:
                writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listens on a loopback port, which `address` names."""
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
            sink.close()  # unlike abort, this still sends what was written
        back.transport.abort()

    def _may_cut(self) -> bool:
        return self._after is not None and (self._times is None or self.cuts < self._times)


class _Messages:
    """A counter of the messages of one response stream."""

    def __init__(self) -> None:
        self._count = 0
        self._missing = 0
        self._prefix = b""

    def end_of(self, wanted: int, data: bytes) -> int | None:
        """Returns the offset in `data` at which the wanted message ends, or None if it does not.

        Before the first message, message 0 has ended.
        """
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
