"""Runs a client's conformance program against a real daemon.

`clients/CONFORMANCE.md` specifies the programs. By hand, from the repository's root:

    .venv/bin/python tests/conformance_run.py COMMAND...

prints both transcripts, compares them with clients/transcript.txt and clients/transcript-calls.txt,
and then runs the command with `restart` through both kinds of restart.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fault_proxy import FaultProxy
from ports import free_port
from running import RunningDaemon

ROOT = Path(__file__).parents[1]
TRANSCRIPT = ROOT / "clients" / "transcript.txt"
CALLS_TRANSCRIPT = ROOT / "clients" / "transcript-calls.txt"
_SECONDS = 120.0
_FLAGS = ("--engine", "echo", "--echo-faults", "--log-format", "json")
_DELAY_SECONDS = 0.15
# `calls` prints no single pieces of text, so that any number of them may arrive together.
_CALLS_DELAY_SECONDS = 0.01
_CALLS_FLAGS = ("--max-sessions", "1000")
_NUMBER = re.compile(r"^event \d+ |(?<=^finished STOP )sequence=\d+ ")
_RESTART_DELAY_SECONDS = 0.04


@asynccontextmanager
async def started(
    folder: Path, port: int = 0, *flags: str, delay_seconds: float = _DELAY_SECONDS
) -> AsyncIterator[RunningDaemon]:
    """Starts a daemon with the echo engine and a SQLite store in the folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RUVD_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ruvd", "serve", *_FLAGS,
        "--echo-delay-seconds", str(delay_seconds),
        "--store", f"sqlite:{folder}/s.db", "--listen", f"127.0.0.1:{port}",
        *flags, stderr=asyncio.subprocess.PIPE, env=environment, cwd=folder, limit=1 << 20,
    )  # fmt: skip
    running = RunningDaemon(process, folder)
    try:
        await running.listening(1)
        yield running
    finally:
        await running.stop()


async def transcript(command: Sequence[str], cwd: Path) -> str:
    """Returns the program's output of `scenario`. Fails if its exit code is not 0."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-")))
        running = await stack.enter_async_context(started(folder))
        target = running.address
        cuts = {
            "RUVD_CUT_THIRD": FaultProxy(target, after=3),
            "RUVD_CUT_ALWAYS": FaultProxy(target, after=3, times=None),
            "RUVD_CUT_FIRST": FaultProxy(target, after=0),
        }
        for proxy in cuts.values():
            await stack.enter_async_context(proxy.running())
        addresses = {name: proxy.address for name, proxy in cuts.items()}
        output = await _output([*command, "scenario"], cwd, target, addresses)
        unused = [name for name, proxy in cuts.items() if not proxy.cuts]
        assert not unused, f"no connection was cut at {unused}"
        return output


def joined(output: str) -> str:
    """Returns a transcript of `scenario` in which the pieces of the cut streams are joined.

    Words that the engine writes while a client reconnects arrive as one piece with one number, and
    on a busy machine that takes longer than a word. All else stays as it is.
    """
    lines: list[str] = []
    is_cut = False
    for each in output.splitlines():
        if each.startswith("# "):
            is_cut = each.startswith("# cut")
        line = _NUMBER.sub("", each) if is_cut else each
        kind, _, piece = line.partition(" [")
        if is_cut and kind in ("text", "delta") and lines[-1].startswith(f"{kind} ["):
            lines[-1] = f"{lines[-1][:-1]}{piece}"
        else:
            lines.append(line)
    return "\n".join(lines)


async def calls_transcript(command: Sequence[str], cwd: Path) -> str:
    """Returns the program's output of `calls`. Fails if its exit code is not 0."""
    with tempfile.TemporaryDirectory(prefix="ruvd-") as folder:
        daemon = started(Path(folder), 0, *_CALLS_FLAGS, delay_seconds=_CALLS_DELAY_SECONDS)
        async with daemon as running:
            return await _output([*command, "calls"], cwd, running.address, {})


async def _output(
    command: Sequence[str], cwd: Path, address: str, addresses: Mapping[str, str]
) -> str:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        environment = {
            **os.environ,
            "RUVD_ADDRESS": address,
            "RUVD_NOBODY": f"127.0.0.1:{nobody.getsockname()[1]}",
            **addresses,
        }
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_SECONDS):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise AssertionError(f"{process.returncode}: {output.decode()}\n{errors.decode()}")
        return output.decode()


async def restarted(command: Sequence[str], cwd: Path, *, committed: bool) -> str:
    """Returns the program's output if the daemon is killed during its answer and restarted after
    a second. With `committed`, the connection is cut first, and the daemon is killed once the
    answer is on disk."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-")))
        port = free_port()
        running = await stack.enter_async_context(
            started(folder, port, delay_seconds=_RESTART_DELAY_SECONDS)
        )
        proxy = await stack.enter_async_context(FaultProxy(running.address).running())
        process = await asyncio.create_subprocess_exec(
            *command, "restart", cwd=cwd, env={**os.environ, "RUVD_ADDRESS": proxy.address},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_SECONDS):
                assert await process.stdout.readline() == b"ready\n"
                if committed:
                    proxy.closed = True
                    await running.logged("completion")
                running.kill()
                await running.ended()
                await asyncio.sleep(1.0)  # the restart delay of a supervisor
                await stack.enter_async_context(started(folder, port))
                proxy.closed = False
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise AssertionError(f"{process.returncode}: {output.decode()}\n{errors.decode()}")
        return output.decode()


async def _by_hand(command: Sequence[str]) -> int:
    are_equal = True
    for run, file in ((transcript, TRANSCRIPT), (calls_transcript, CALLS_TRANSCRIPT)):
        output = await run(command, Path.cwd())
        print(output, end="")
        is_equal = file.exists() and joined(file.read_text()) == joined(output)
        are_equal = are_equal and is_equal
        print(f"--- {'equal to' if is_equal else 'DIFFERS from'} {file}")
    for committed in (False, True):
        print(f"--- restart, {'committed' if committed else 'not committed'}")
        print(await restarted(command, Path.cwd(), committed=committed), end="")
    return 0 if are_equal else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(_by_hand(sys.argv[1:])))
