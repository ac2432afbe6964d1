"""Daemons with the echo engine, and the commands as a person would run them.

The echo engine answers with the last user message, a delta a word, so every answer is known.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

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
    """Each word takes a while: nobody waits for the end of a long answer by accident."""
    async with daemon(*ECHO, "--echo-delay-seconds", "0.05") as running:
        yield running.address


@pytest.fixture
def ruvd() -> Callable[..., Awaitable[subprocess.CompletedProcess[str]]]:
    """Run a command to its end."""

    async def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RUVD_")}
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "ruvd", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, "COLUMNS": "200"},
        )

    return run
