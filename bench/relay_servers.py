"""Server processes for benchmarks, each ended by its process id when its block is left.

Each leads a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.mock_upstream import MODEL

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


class Failed(Exception):
    """The benchmark cannot go on; the message says why."""


class Server:
    """A process that serves; what it writes goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def cpu_seconds(self) -> float:
        """What it and its children have used."""
        own = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def memory_mib(self) -> float:
        """What it and its children hold, resident."""
        own = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (own, *own.children(recursive=True))) / (
            1 << 20
        )

    def check_runs(self) -> None:
        """Raises Failed with the end of its log when it has ended."""
        if self.process.returncode is not None:
            end = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self.name} ended with {self.process.returncode}:\n{end}")


@asynccontextmanager
async def running(
    name: str, folder: Path, *command: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """A process: in the folder with these variables, or in the tree with the caller's."""
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT if env is None else folder,
            env=_own_environment() if env is None else env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if name in ("mock", "sink") else stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield Server(name, process, log)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process, and its children should they outlive it."""
    if process.returncode is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()  # the same process, not another with its id


def _own_environment() -> dict[str, str]:
    """The caller's variables without settings of ruvd, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUVD_")}


@asynccontextmanager
async def mock(
    folder: Path, *, tokens: int, first_ms: float, token_ms: float, port: int = 0
) -> AsyncIterator[tuple[Server, int]]:
    """The mock upstream, and its port: any free one, unless one is asked for."""
    command = (
        sys.executable, "-m", "bench.mock_upstream", "--port", str(port),
        "--tokens", str(tokens), "--first-ms", str(first_ms), "--token-ms", str(token_ms),
    )  # fmt: skip
    async with running("mock", folder, *command) as server:
        yield server, await _told_port(server)


async def _told_port(server: Server) -> int:
    """The port that a process prints first."""
    assert server.process.stdout is not None
    line = await asyncio.wait_for(server.process.stdout.readline(), _START_SECONDS)
    if not line:
        await server.process.wait()
        server.check_runs()
    return int(line)


@asynccontextmanager
async def ruvd(
    name: str,
    folder: Path,
    mock_port: int,
    *,
    store: str,
    listen: str = "",
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Server, str]]:
    """A daemon on the engine `openai`, and its address: a Unix socket, unless `listen` is another.
    `environment` adds to the caller's."""
    address = listen or f"unix:{folder / name}.sock"
    command = (
        sys.executable, "-m", "ruvd", "serve", "--engine", "openai",
        "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--model", MODEL,
        "--store", store, "--listen", address, *flags,
    )  # fmt: skip
    env = {**_own_environment(), "PYTHONPATH": str(ROOT), **(environment or {})}
    async with running(name, folder, *command, env=env) as server:
        yield server, address


@asynccontextmanager
async def embedded(
    name: str, folder: Path, *, flags: Sequence[str] = ()
) -> AsyncIterator[tuple[Server, str]]:
    """A daemon with its own engine and a store in the folder, and its address."""
    address = f"unix:{folder / name}.sock"
    store = f"sqlite:{folder / name}.db"
    command = (
        sys.executable, "-m", "ruvd", "serve", "--store", store, "--listen", address, *flags,
    )  # fmt: skip
    env = {**_own_environment(), "PYTHONPATH": str(ROOT)}
    async with running(name, folder, *command, env=env) as server:
        yield server, address


@asynccontextmanager
async def sink(folder: Path) -> AsyncIterator[tuple[Server, int]]:
    """A collector that looks at nothing, and its port."""
    command = (sys.executable, "-m", "bench.otlp_sink")
    async with running("sink", folder, *command) as server:
        yield server, await _told_port(server)


@asynccontextmanager
async def naive(folder: Path, mock_port: int) -> AsyncIterator[tuple[Server, str]]:
    """The naive relay, and its address."""
    address = f"unix:{folder}/naive.sock"
    command = (
        sys.executable, "-m", "bench.naive_relay",
        "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--listen", address,
    )  # fmt: skip
    async with running("naive", folder, *command) as server:
        yield server, address


def free_port() -> int:
    """A loopback port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_serving(server: Server, address: str, *, service: str | None) -> None:
    """Wait until a gRPC server is connected and, if a health service is named, serving."""
    async with grpc.aio.insecure_channel(address) as channel:
        deadline = time.monotonic() + _START_SECONDS
        health: Any = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            server.check_runs()
            try:
                if service is None:
                    await asyncio.wait_for(channel.channel_ready(), 1)
                    return
                request = health_pb2.HealthCheckRequest(service=service)
                status = (await health.Check(request, wait_for_ready=True, timeout=1)).status
                if status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except (grpc.aio.AioRpcError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
    raise Failed(f"{server.name} is not ready after {_START_SECONDS:.0f} s: {server.log}")


async def until_answering(server: Server, port: int, path: str) -> None:
    """Wait until an HTTP server answers with 200."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        server.check_runs()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
            if b" 200 " in line:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise Failed(f"{server.name} does not answer after {_START_SECONDS:.0f} s: {server.log}")
