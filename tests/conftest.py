"""Fixtures that every kind of test may use: above all `daemon`, a real ruvd process."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from running import RunningDaemon, StartDaemon

# A busy machine is no failure: what a property takes to try is bounded by the test's time-out.
settings.register_profile(
    "ruvd", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ruvd")


@pytest.fixture(scope="session", autouse=True)
def _grpc_stays_up() -> None:
    # gRPC joins its polling thread when its last channel is collected, in whatever line that is:
    # with one holder for good it never does, and is not taken for a blocking call of ours.
    grpc.aio.init_grpc_aio()


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    """A blocking call of ours on the event loop is an error, in every test in this process."""
    with blockbuster_ctx("ruvd") as blockbuster:
        # Coverage measures from whatever line it is at; that is not ours.
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            blockbuster.functions[name].can_block_in("coverage/collector.py", "lock_data")
        yield


@pytest.fixture
async def daemon() -> AsyncGenerator[StartDaemon, None]:
    """Start daemons: `async with daemon("--engine", "echo") as d`.

    The store is in memory unless `--store` is given; `folder` puts a second daemon where the first
    one was. It listens at `d.socket` and at `d.address`, a loopback port.
    """
    folders: list[Path] = []

    @asynccontextmanager
    async def start(*flags: str, folder: Path | None = None) -> AsyncIterator[RunningDaemon]:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ruvd-"))  # short: a socket's path is
            folders.append(folder)
        if "--store" not in flags:
            flags = (*flags, "--store", "memory")
        if "--listen" not in flags:
            flags = (*flags, "--listen", f"unix:{folder}/r.sock", "--listen", "127.0.0.1:0")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RUVD_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ruvd", "serve", "--log-format", "json", *flags,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            cwd=folder,
            limit=1 << 20,
        )  # fmt: skip
        running = RunningDaemon(process, folder)
        try:
            await running.listening(flags.count("--listen"))
            yield running
        finally:
            try:
                await running.stop()
            except TimeoutError:
                process.kill()
                raise
            assert not running.crashed(), (process.returncode, running.log[-20:])

    yield start
    for each in folders:
        shutil.rmtree(each, ignore_errors=True)
