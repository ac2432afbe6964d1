"""Starts the server processes of the benchmarks and ends each by its process id.

Each process leads a session of its own, so that Ctrl-C reaches only the benchmark, which then ends
its servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.mock_upstream import MODEL

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120.0


class Failed(Exception):
    """The benchmark cannot go on; the message says why."""


class Server:
    """A server process; its output goes to a log file."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def cpu_seconds(self) -> float:
        """Returns the CPU time that the process and its children have used."""
        times = [process.cpu_times() for process in self._processes()]
        return sum(used.user + used.system for used in times)

    def memory_mib(self) -> float:
        """Returns the resident memory of the process and its children."""
        return sum(process.memory_info().rss for process in self._processes()) / (1 << 20)

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def check_runs(self) -> None:
        """Raises Failed with the end of the log if the process has ended."""
        if self.process.returncode is not None:
            end = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self.name} ended with {self.process.returncode}:\n{end}")


@asynccontextmanager
async def running(
    name: str,
    folder: Path,
    *command: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    pipe_output: bool = False,
    stop_seconds: float = 10.0,
) -> AsyncIterator[Server]:
    """Runs a command until the block is left.

    With `env` it runs in the folder with only these variables. Without, it runs in the source tree
    with the caller's variables. Its standard input stays open after `stdin` was written to it.
    `pipe_output` lets the caller read its standard output.
    """
    log = folder / f"{name}.log"
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT if env is None else folder,
            env=own_environment() if env is None else env,
            stdin=PIPE if stdin else DEVNULL,
            stdout=PIPE if pipe_output else stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        if process.stdin is not None:
            process.stdin.write(stdin)
        yield Server(name, process, log)
    finally:
        await _end(process, stop_seconds)


async def _end(process: Process, timeout_seconds: float) -> None:
    """Ends a process by SIGTERM, then by SIGKILL, and kills children that outlive it."""
    if process.returncode is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), timeout_seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()  # psutil checks that the id has not been reused


def own_environment() -> dict[str, str]:
    """Returns the caller's variables without ruvd's settings, which would change what is measured.

    `PYTHONPATH` makes this tree importable for the embedded engine's child process as well.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUVD_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


@asynccontextmanager
async def mock(
    folder: Path, *, tokens: int, first_ms: float, token_ms: float, port: int = 0
) -> AsyncIterator[tuple[Server, int]]:
    """Runs the mock upstream and yields it with its port. Port 0 means any free port."""
    command = (
        sys.executable, "-m", "bench.mock_upstream", "--port", str(port),
        "--tokens", str(tokens), "--first-ms", str(first_ms), "--token-ms", str(token_ms),
    )  # fmt: skip
    async with running("mock", folder, *command, pipe_output=True) as server:
        yield server, await _printed_port(server)


async def _printed_port(server: Server) -> int:
    """Reads the port from the first line that the process prints."""
    assert server.process.stdout is not None
    line = await asyncio.wait_for(server.process.stdout.readline(), _START_SECONDS)
    if not line:
        await server.process.wait()
        server.check_runs()
    return int(line)


@asynccontextmanager
async def daemon(
    name: str,
    folder: Path,
    *flags: str,
    listen: str = "",
    environment: Mapping[str, str] | None = None,
    stop_seconds: float = 10.0,
    under: Callable[..., Sequence[str]] | None = None,
) -> AsyncIterator[tuple[Server, str]]:
    """Runs `ruvd serve` and yields it with its address: a Unix socket, unless `listen` is given.

    `environment` is added to the caller's variables. `under` returns a command that becomes the
    command it is given.
    """
    address = listen or f"unix:{folder / name}.sock"
    command = (sys.executable, "-m", "ruvd", "serve", "--listen", address, *flags)
    if under:
        command = tuple(under(*command))
    env = {**own_environment(), **(environment or {})}
    async with running(name, folder, *command, env=env, stop_seconds=stop_seconds) as server:
        yield server, address


def ruvd(
    name: str,
    folder: Path,
    mock_port: int,
    *,
    store: str,
    listen: str = "",
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AbstractAsyncContextManager[tuple[Server, str]]:
    """Runs a daemon with the engine `openai` on the mock and yields it with its address."""
    flags = (
        "--engine", "openai", "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--model", MODEL,
        "--store", store, *flags,
    )  # fmt: skip
    return daemon(name, folder, *flags, listen=listen, environment=environment)


def embedded(
    name: str, folder: Path, *, flags: Sequence[str] = ()
) -> AbstractAsyncContextManager[tuple[Server, str]]:
    """Runs a daemon with the embedded engine and a store in the folder; yields its address too."""
    return daemon(name, folder, "--store", f"sqlite:{folder / name}.db", *flags)


@asynccontextmanager
async def sink(folder: Path) -> AsyncIterator[tuple[Server, int]]:
    """Runs a telemetry collector that discards everything, and yields it with its port."""
    command = (sys.executable, "-m", "bench.otlp_sink")
    async with running("sink", folder, *command, pipe_output=True) as server:
        yield server, await _printed_port(server)


@asynccontextmanager
async def naive(folder: Path, mock_port: int) -> AsyncIterator[tuple[Server, str]]:
    """Runs the naive relay and yields it with its address."""
    address = f"unix:{folder}/naive.sock"
    command = (
        sys.executable, "-m", "bench.naive_relay",
        "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--listen", address,
    )  # fmt: skip
    async with running("naive", folder, *command) as server:
        yield server, address


@asynccontextmanager
async def bare_grpc(folder: Path, tokens: int) -> AsyncIterator[tuple[Server, str]]:
    """Runs the server that answers from memory and yields it with its address."""
    address = f"unix:{folder}/grpc.sock"
    command = (
        sys.executable, "-m", "bench.bare_grpc", "--tokens", str(tokens), "--listen", address,
    )  # fmt: skip
    async with running("grpc", folder, *command) as server:
        yield server, address


@asynccontextmanager
async def go(program: Path, folder: Path, mock_port: int) -> AsyncIterator[tuple[Server, str]]:
    """Runs the Go server of ruvd's API and yields it with its address."""
    path = folder / "go.sock"
    base_url = f"http://127.0.0.1:{mock_port}/v1"
    async with running(
        "go", folder, str(program), "-listen", str(path), "-base-url", base_url
    ) as server:
        yield server, f"unix:{path}"


def free_port() -> int:
    """Returns a loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_serving(server: Server, address: str, *, service: str | None) -> None:
    """Waits until a gRPC server is connected and the health service, if named, is serving.

    Raises Failed if the process ends or the start takes too long.
    """
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
    """Waits until an HTTP server answers with 200. Raises Failed as `until_serving` does."""
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
