"""Fixtures: daemons with the echo engine, and the `ruvd` commands run as child processes.

The echo engine answers with the last user message, one delta per word, so answers are predictable.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import command_line
import pytest
import pytest_asyncio
from running import StartDaemon

ECHO = ("--engine", "echo", "--store", "memory")


@pytest_asyncio.fixture
async def address(daemon: StartDaemon) -> AsyncIterator[str]:
    async with daemon(*ECHO) as running:
        yield running.address


@pytest_asyncio.fixture
async def slow_address(daemon: StartDaemon) -> AsyncIterator[str]:
    """A daemon that takes 50 ms per word, so that no test waits for a long answer by mistake."""
    async with daemon(*ECHO, "--echo-delay-seconds", "0.05") as running:
        yield running.address


@pytest.fixture
def ruvd() -> Callable[..., Awaitable[subprocess.CompletedProcess[str]]]:
    """Runs a command to its end."""
    return command_line.run
