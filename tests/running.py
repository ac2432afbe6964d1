"""Starts real ruvd processes, and lets tests read their logs, call them and end them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from ruvd.v1 import session_service_pb2_grpc as pb_grpc

START_SECONDS = 30.0
STOP_SECONDS = 15.0


def clean_environment() -> dict[str, str]:
    """Returns this process's environment without variables that change a ruvd's behaviour.

    gRPC's are among them: importing the daemon sets one, and a child has to set it by itself.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith(("RUVD_", "GRPC_"))}


async def start_serve(
    *flags: str,
    folder: Path,
    under: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> RunningDaemon:
    """Starts `ruvd serve` with JSON logs in a folder, `under` a command, and does not wait."""
    process = await asyncio.create_subprocess_exec(
        *under, sys.executable, "-m", "ruvd", "serve", "--log-format", "json", *flags,
        stderr=asyncio.subprocess.PIPE,
        env={**clean_environment(), **(variables or {})},
        cwd=folder,
        limit=1 << 20,
    )  # fmt: skip
    return RunningDaemon(process, folder)


class RunningDaemon:
    """A ruvd process: its address, its log, and ways to end it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.folder = folder
        self.socket = f"unix:{folder}/r.sock"
        self.admin_socket = ""
        self.address = ""
        self.log: list[dict[str, Any]] = []
        self._log_grew = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode().strip()
            event = json.loads(text) if text.startswith("{") else {"event": text}
            async with self._log_grew:
                self.log.append(event)
                self._log_grew.notify_all()
        async with self._log_grew:
            self.log.append({"event": "(end of log)"})
            self._log_grew.notify_all()

    async def logged(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits until events with these fields were logged `count` times; returns the last one."""
        async with asyncio.timeout(START_SECONDS), self._log_grew:
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
                await self._log_grew.wait()

    async def listening(self, addresses: int) -> None:
        """Waits until the daemon listens at so many addresses; a TCP one is then `address`."""
        await self.logged("listening", count=addresses)
        for line in self.log:
            if line["event"] == "listening" and not line["address"].startswith("unix:"):
                self.address = line["address"]

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Waits for the end of the process; returns its exit code."""
        async with asyncio.timeout(STOP_SECONDS):
            code = await self.process.wait()
        await self._reader
        return code

    def crashed(self) -> bool:
        """Tells whether it ended by a signal that no test sends, or with an unexpected code."""
        return self.process.returncode not in (None, 0, -signal.SIGKILL, 130, 143)

    async def stop(self) -> int:
        """Sends SIGTERM and waits for the end; returns the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[pb_grpc.SessionServiceAsyncStub]:
        """Yields a generated stub of the service, over the daemon's Unix socket."""
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self.socket, options=options) as channel:
            yield pb_grpc.SessionServiceStub(channel)


StartDaemon: TypeAlias = Callable[..., AbstractAsyncContextManager[RunningDaemon]]
