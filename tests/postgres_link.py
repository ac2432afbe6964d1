"""A link to a PostgreSQL server that loses an answer, or a question, and then breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"
_CHUNK = 1 << 16


class Link:
    """Relays connections of a socket in `directory` to the server in `target`.

    If `marker` is set, the next statement that contains these bytes breaks its connection: after
    the server has answered with `answered`, before the statement has reached it otherwise. With
    `is_down` all connections break. With `is_deaf` the server's answers get lost while the
    connections stay, and with `is_mute` the statements.
    """

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        self.target = target
        self.marker = b""
        self.answered = True
        self.broken = 0
        self.is_deaf = False
        self.is_mute = False
        self._is_down = False
        self._open: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()

    @property
    def is_down(self) -> bool:
        return self._is_down

    @is_down.setter
    def is_down(self, down: bool) -> None:
        self._is_down = down
        if down:
            for writer in self._open:
                writer.transport.abort()

    def conninfo(self, original: str) -> str:
        """The connection string of the server, by this link."""
        return original.replace(f"host={self.target}", f"host={self.directory}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Link]:
        server = await asyncio.start_unix_server(self._connected, self.directory / _SOCKET)
        try:
            yield self
        finally:
            server.close()
            self.is_down = True
            await server.wait_closed()
            await asyncio.gather(*self._relays, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        to_server, from_server = None, None
        with suppress(OSError):
            from_server, to_server = await asyncio.open_unix_connection(self.target / _SOCKET)
        if from_server is None or to_server is None:
            writer.transport.abort()
            return
        self._open |= {writer, to_server}
        answers = asyncio.create_task(self._copy(from_server, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(_CHUNK):
                    if self.marker and self.marker in data:
                        self.marker = b""
                        self.broken += 1
                        answers.cancel()
                        await asyncio.gather(answers, return_exceptions=True)
                        if self.answered:
                            to_server.write(data)
                            await from_server.read(_CHUNK)  # the statement has been executed
                        break
                    if not self.is_mute:
                        to_server.write(data)
                        await to_server.drain()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            self._open -= {writer, to_server}
            writer.transport.abort()
            to_server.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if not self.is_deaf:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()
