"""Fixtures that every kind of test may use: above all `daemon`, a real ruvd process."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import grpc
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from running import RunningDaemon, StartDaemon, start_serve

# A property may be slow on a busy machine; only the test's own timeout bounds it.
settings.register_profile(
    "ruvd", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ruvd")


@pytest.fixture(scope="session", autouse=True)
def _grpc_stays_up() -> None:
    # gRPC joins its polling thread when its last channel is collected, in whatever line that is.
    # A holder for the whole run prevents it, so that it is not taken for a blocking call of ours.
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session", autouse=True)
def _children_take_signals() -> None:
    # A shell without job control starts background commands, such as `nohup make test &`, with
    # SIGINT and SIGQUIT ignored, and nohup ignores SIGHUP. A child inherits that. It does not
    # inherit a handler: the signal then has its default action in the child, while this process
    # goes on without reacting.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    """A blocking call of ours on the event loop is an error, in every test in this process."""
    with blockbuster_ctx("ruvd") as blockbuster:
        # Coverage takes its lock in whatever line it measures, also in ours.
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            blockbuster.functions[name].can_block_in("coverage/collector.py", "lock_data")
        yield


@pytest.fixture
async def daemon() -> AsyncGenerator[StartDaemon, None]:
    """Starts daemons: `async with daemon("--engine", "echo") as d`.

    The store is in memory unless `--store` is given. `folder` lets a second daemon use the folder
    of the first; `under` is a command to run it with. A daemon listens at `d.socket` and at
    `d.address`, a loopback port; its admin socket is `d.admin_socket`.
    """
    folders: list[Path] = []
    numbers = count(1)

    @asynccontextmanager
    async def start(
        *flags: str, folder: Path | None = None, under: Sequence[str] = ()
    ) -> AsyncIterator[RunningDaemon]:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ruvd-"))  # short, as a socket's path must be
            folders.append(folder)
        if "--store" not in flags:
            flags = (*flags, "--store", "memory")
        admin_socket = f"unix:{folder}/admin{next(numbers)}.sock"  # two may have one folder
        if "--admin-listen" not in flags:
            flags = (*flags, "--admin-listen", admin_socket)
        if "--listen" not in flags:
            flags = (*flags, "--listen", f"unix:{folder}/r.sock", "--listen", "127.0.0.1:0")
        running = await start_serve(*flags, folder=folder, under=under)
        running.admin_socket = admin_socket
        try:
            await running.listening(flags.count("--listen"))
            yield running
        finally:
            try:
                await running.stop()
            except TimeoutError:
                running.kill()
                raise
            assert not running.crashed(), (running.process.returncode, running.log[-20:])

    yield start
    for each in folders:
        shutil.rmtree(each, ignore_errors=True)
