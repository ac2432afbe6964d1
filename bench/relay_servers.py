"""The server processes of `bench/relay.py`, each ended by its process id when the run is over.

LiteLLM gets an environment of its own (`litellm.txt`: pinned with hashes, wheels only, and as of a
week before its compromised release 1.107.0), an empty home and none of the caller's variables, so
that no credential of the caller's is within its reach, and does not ask the network for prices.
"""

from __future__ import annotations

import asyncio
import json
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

from bench.mock_upstream import MODEL, PACED_MODEL

ROOT = Path(__file__).parent.parent
LITELLM_REQUIREMENTS = Path(__file__).with_name("litellm.txt")
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
async def _running(
    name: str, folder: Path, *command: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT if env is None else folder,
            env=_own_environment() if env is None else env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if name in ("mock", "sink") else stderr,
            stderr=stderr,
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
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
    for child in children:
        if child.is_running():  # the same process, not another with its id
            child.kill()


def _own_environment() -> dict[str, str]:
    """The caller's variables without settings of ruvd, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUVD_")}


@asynccontextmanager
async def mock(
    folder: Path, *, tokens: int, first_ms: float, token_ms: float
) -> AsyncIterator[tuple[Server, int]]:
    """The mock upstream, and its port."""
    command = (
        sys.executable, "-m", "bench.mock_upstream",
        "--tokens", str(tokens), "--first-ms", str(first_ms), "--token-ms", str(token_ms),
    )  # fmt: skip
    async with _running("mock", folder, *command) as server:
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
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Server, str]]:
    """A daemon on the engine `openai`, and its address: a Unix socket. `environment` adds to
    the caller's."""
    address = f"unix:{folder / name}.sock"
    command = (
        sys.executable, "-m", "ruvd", "serve", "--engine", "openai",
        "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--model", MODEL,
        "--store", store, "--listen", address, *flags,
    )  # fmt: skip
    env = {**_own_environment(), "PYTHONPATH": str(ROOT), **(environment or {})}
    async with _running(name, folder, *command, env=env) as server:
        yield server, address


@asynccontextmanager
async def embedded(name: str, folder: Path) -> AsyncIterator[tuple[Server, str]]:
    """A daemon with its own engine and a store in the folder, and its address."""
    address = f"unix:{folder / name}.sock"
    store = f"sqlite:{folder / name}.db"
    command = (sys.executable, "-m", "ruvd", "serve", "--store", store, "--listen", address)
    env = {**_own_environment(), "PYTHONPATH": str(ROOT)}
    async with _running(name, folder, *command, env=env) as server:
        yield server, address


@asynccontextmanager
async def sink(folder: Path) -> AsyncIterator[tuple[Server, int]]:
    """A collector that looks at nothing, and its port."""
    command = (sys.executable, "-m", "bench.otlp_sink")
    async with _running("sink", folder, *command) as server:
        yield server, await _told_port(server)


@asynccontextmanager
async def naive(folder: Path, mock_port: int) -> AsyncIterator[tuple[Server, str]]:
    """The naive relay, and its address."""
    address = f"unix:{folder}/naive.sock"
    command = (
        sys.executable, "-m", "bench.naive_relay",
        "--base-url", f"http://127.0.0.1:{mock_port}/v1", "--listen", address,
    )  # fmt: skip
    async with _running("naive", folder, *command) as server:
        yield server, address


@asynccontextmanager
async def litellm(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """LiteLLM's proxy, and its port: one worker, its default server and HTTP client (aiohttp)."""
    port = _free_port()
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps(_litellm_config(mock_port)))
    home = folder / "home"
    home.mkdir()
    env = {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        # Only loopback can reach it, and checking a key would cost it time.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "NO_PROXY": "*",
    }
    command = (
        str(environment / "bin" / "litellm"), "--config", str(config),
        "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
    )  # fmt: skip
    async with _running("litellm", folder, *command, env=env) as server:
        yield server, port


def _litellm_config(mock_port: int) -> dict[str, Any]:
    base_url = f"http://127.0.0.1:{mock_port}/v1"
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": base_url,
                    "api_key": "none",
                },
            }
            for name in (MODEL, PACED_MODEL)
        ],
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }


def _free_port() -> int:
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


async def install_litellm(environment: Path) -> None:
    """Make LiteLLM's environment, unless it is there; pip shows its progress."""
    marker = environment / "installed.txt"
    if marker.is_file() and marker.read_bytes() == LITELLM_REQUIREMENTS.read_bytes():
        return
    print(f"installing LiteLLM into {environment} (750 MB, a minute or two) ...", file=sys.stderr)
    python = environment / "bin" / "python"
    await _run(sys.executable, "-m", "venv", str(environment))
    # The list is complete; without dependencies pip needs no resolving, which takes it a minute.
    await _run(
        str(python), "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes",
        "--no-deps", "--only-binary", ":all:", "-r", str(LITELLM_REQUIREMENTS),
    )  # fmt: skip
    marker.write_bytes(LITELLM_REQUIREMENTS.read_bytes())


async def _run(*command: str) -> None:
    # What it says is progress: standard output may be JSON.
    process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr)
    try:
        if await process.wait():
            raise Failed(f"{' '.join(command)} failed")
    finally:
        await _end(process)


def litellm_version() -> str:
    """The version that `litellm.txt` pins."""
    for line in LITELLM_REQUIREMENTS.read_text().splitlines():
        if line.startswith("litellm=="):
            return line.removeprefix("litellm==").split()[0]
    raise Failed(f"{LITELLM_REQUIREMENTS} pins no litellm")
