"""A real ruvd process, as the tests see it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from ruvd.v1 import session_service_pb2_grpc as pb_grpc

START_SECONDS = 30.0
STOP_SECONDS = 15.0


class RunningDaemon:
    """A ruvd process: its address, its log, and ways to end it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.folder = folder
        self.socket = f"unix:{folder}/r.sock"
        self.address = ""
        self.log: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode().strip()
            event = json.loads(text) if text.startswith("{") else {"event": text}
            async with self._news:
                self.log.append(event)
                self._news.notify_all()
        async with self._news:
            self.log.append({"event": "(end of log)"})
            self._news.notify_all()

    async def logged(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait until an event with these fields was logged `count` times; the last of them."""
        async with asyncio.timeout(START_SECONDS), self._news:
            while True:
                found = [
                    line
                    for line in self.log
                    if line["event"] == event and fields.items() <= line.items()
                ]
                if len(found) >= count:
                    return found[-1]
                if self.log and self.log[-1]["event"] == "(end of log)":
                    raise AssertionError(f"the daemon ended without {event!r}: {self.log}")
                await self._news.wait()

    async def listening(self, addresses: int) -> None:
        """Wait until the daemon listens at so many addresses; a port is then in `address`."""
        await self.logged("listening", count=addresses)
        for line in self.log:
            if line["event"] == "listening" and not line["address"].startswith("unix:"):
                self.address = line["address"]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for the process's end; its exit code."""
        async with asyncio.timeout(STOP_SECONDS):
            code = await self.process.wait()
        await self._reader
        return code

    def crashed(self) -> bool:
        """Whether it ended by a signal that no test sends, or with a failure of its own."""
        return self.process.returncode not in (None, 0, -signal.SIGKILL, 130, 143)

    async def stop(self) -> int:
        """SIGTERM, then wait for the end; the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[pb_grpc.SessionServiceAsyncStub]:
        """The service over the daemon's Unix socket, generated code only."""
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self.socket, options=options) as channel:
            yield pb_grpc.SessionServiceStub(channel)


StartDaemon: TypeAlias = Callable[..., AbstractAsyncContextManager[RunningDaemon]]
