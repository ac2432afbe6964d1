"""Fills the disk under a daemon's store again and again, and checks that it recovers each time.

The store is on a tmpfs of 16 MiB, which this process has to be allowed to mount (root may); without
one the benchmark says so and ends with code 0. While the disk is full, turns of sessions have to
fail with STORE_UNAVAILABLE and stateless completions to be answered. Once there is room again, the
next turn has to be answered within 30 s, and every turn that was answered has to be in its history.

Run it with `.venv/bin/python -m bench.full_disk --seconds 30`. The exit code is 1 if not all holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from bench import relay_servers as servers
from bench import runner
from bench.attackers import outcome
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_DISK_BYTES = 16 << 20
_RECOVERY_SECONDS = 30.0
_TEXT = "What is a sidecar? " * 500


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a small tmpfs at a folder, and says whether that was possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "ruvd-bench", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)  # noqa: S607


async def ask(stub: Any, session_id: str) -> str:
    """Runs a turn of a session, or a stateless one, and returns its outcome."""
    message = pb.Message(role=pb.ROLE_USER, content=_TEXT if session_id else "hi")
    request = pb.CompleteRequest(session_id=session_id, messages=[message])
    try:
        async for _ in stub.Complete(request, timeout=60):
            pass
    except grpc.aio.AioRpcError as error:
        return outcome(error)
    return "answered"


def fill(path: Path) -> None:
    """Writes to a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


async def fill_and_free(stub: Any, disk: Path, answered: int) -> tuple[int, float]:
    """Fills the disk, frees it, and returns the turns in the history and the time to recover.

    Raises Failed if something does not hold.
    """
    await asyncio.to_thread(fill, disk / "filler")
    failed = ""
    while (got := await ask(stub, "s")) == "answered":  # there may be room in the log
        answered += 1
    if got != "STORE_UNAVAILABLE":
        failed = f"a turn on a full disk ended with {got}"
    elif (stateless := await ask(stub, "")) != "answered":
        failed = f"a stateless completion on a full disk ended with {stateless}"
    (disk / "filler").unlink()
    began = time.monotonic()
    while not failed and await ask(stub, "s") != "answered":
        if time.monotonic() - began > _RECOVERY_SECONDS:
            failed = f"no turn was answered {_RECOVERY_SECONDS:g} s after there was room"
        await asyncio.sleep(0.1)
    if failed:
        raise servers.Failed(failed)
    answered += 1
    session = (await stub.GetSession(pb.GetSessionRequest(session_id="s"))).session
    if session.exchange_count != answered:
        raise servers.Failed(f"{answered} turns were answered, {session.exchange_count} are stored")
    await stub.EndSession(pb.EndSessionRequest(session_id="s"))
    return session.exchange_count, time.monotonic() - began


async def measure(seconds: float) -> dict[str, Any]:
    """Fills the disk until the time is over, and returns the figures."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-bench-")))
        disk = folder / "disk"
        disk.mkdir()
        if not stack.enter_context(small_disk(disk)):
            return {"mounted": False}
        flags = ("--engine", "echo", "--store", f"sqlite:{disk / 's.db'}")
        running = servers.daemon("full_disk", folder, *flags)
        server, address = await stack.enter_async_context(running)
        await servers.until_serving(server, address, service="readiness")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub = pb_grpc.SessionServiceStub(channel)
        until, rounds, slowest = time.monotonic() + seconds, 0, 0.0
        while time.monotonic() < until:
            _, recovered = await fill_and_free(stub, disk, 0)
            rounds, slowest = rounds + 1, max(slowest, recovered)
        return {"mounted": True, "rounds": rounds, "slowest_recovery_seconds": round(slowest, 2)}


def main() -> int:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    figures = runner.run("full_disk", measure(options.seconds))
    if figures["mounted"]:
        print(
            f"  the disk was full {figures['rounds']} times; the next turn was answered within"
            f" {figures['slowest_recovery_seconds']} s of there being room"
        )
    else:
        print("  not measured: no tmpfs could be mounted")
    runner.write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
