"""The drop-in provider of the TypeScript client against real daemons, by its own tests.

They are written for Node's test runner and say themselves which daemon they need; here the daemons
are started, and no test may have been left out.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from running import StartDaemon

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"
ECHO = ("--engine", "echo", "--echo-faults", "--echo-delay-seconds", "0.02")
LLAMA = ("--engine", "llama", "--llama-threads", "1")

pytestmark = pytest.mark.languages


async def left_out(address: str, engine: str) -> list[str]:
    """Which groups of tests did not run on this daemon; fails if a test did not pass."""
    # Below the folder that the build writes to, whatever its name; installed packages have none.
    tests = sorted(CLIENT.glob("[!n]*/**/ruvllm-provider.test.js"))
    assert tests, "it is not built: make -C clients/typescript build"
    process = await asyncio.create_subprocess_exec(
        "node", "--test", "--test-reporter=tap", str(tests[0]),
        cwd=CLIENT,
        env={**os.environ, "RUVD_ADDRESS": address, "RUVD_ENGINE": engine},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, said
    groups = re.findall(r"^ok \d+ - (.*?)( # SKIP.*)?$", said, re.MULTILINE)
    assert len(groups) == 6, said
    return [name for name, skipped in groups if skipped]


async def test_code_written_for_the_old_provider_runs_on_the_echo_engine(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running:
        assert await left_out(running.address, "echo") == ["on the embedded engine"]


async def test_the_two_turn_conversation_is_kept_cached_and_measured_on_the_embedded_engine(
    daemon: StartDaemon,
) -> None:
    async with daemon(*LLAMA) as running:
        assert await left_out(running.address, "llama") == ["on the echo engine"]
