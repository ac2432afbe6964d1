"""Runs `ruvd` commands as child processes: to their end, beside the test, or on a terminal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from running import clean_environment

_MAX_SECONDS = 60.0
_RUVD = (sys.executable, "-m", "ruvd")
# Wide, so that no line of an output is broken.
_WIDE = {"COLUMNS": "1000"}


def run_to_end(
    *arguments: str, stdin: str = "", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its exit code and its output."""
    return subprocess.run(  # our own program, without a shell
        [*_RUVD, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_MAX_SECONDS,
        env={**clean_environment(), **_WIDE, **(variables or {})},
        check=False,
    )


async def run(
    *arguments: str, stdin: str = "", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a thread and returns its exit code and its output."""
    return await asyncio.to_thread(run_to_end, *arguments, stdin=stdin, variables=variables)


@asynccontextmanager
async def beside(
    *arguments: str,
    under: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    stdin: bool = False,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a command `under` another one until the block is left, with its output in pipes.

    With `stdin` its input is a pipe, too.
    """
    process = await asyncio.create_subprocess_exec(
        *under,
        *_RUVD,
        *arguments,
        stdin=asyncio.subprocess.PIPE if stdin else None,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean_environment(), **_WIDE, **(variables or {})},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Terminal:
    """A command on a terminal. `screen` is what it wrote since the last `clear`."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int) -> None:
        self.process = process
        self.screen = b""
        self._ours = ours

    def write(self, keys: bytes) -> None:
        """Types keys."""
        os.write(self._ours, keys)

    def clear(self) -> None:
        """Forgets what was written."""
        self.screen = b""

    async def see(self, is_there: Callable[[bytes], bool]) -> None:
        """Reads until the screen is as the test waits for. Bounded by the caller's timeout."""
        while not is_there(self.screen):
            self.screen += await asyncio.to_thread(os.read, self._ours, 65_536)


@asynccontextmanager
async def on_terminal(*arguments: str, term: str = "xterm") -> AsyncIterator[Terminal]:
    """Runs a command on a terminal of 150 columns until the block is left."""
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *_RUVD,
        *arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean_environment(), "TERM": term, "COLUMNS": "150", "LINES": "40"},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()  # ends a read of its terminal
        await process.wait()
        os.close(ours)
