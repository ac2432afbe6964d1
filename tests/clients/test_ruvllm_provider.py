"""The tests of the TypeScript client's RuvllmProvider, run against real daemons.

The tests are written for Node's test runner and skip themselves without the daemon they need. This
module starts the daemons and checks that no other test was skipped.
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


async def skipped_groups(address: str, engine: str) -> list[str]:
    """Runs the tests with this daemon and returns the skipped groups. Fails if a test fails."""
    # Searches the build folder, whatever its name; installed packages have no such file.
    tests = sorted(CLIENT.glob("[!n]*/**/ruvllm-provider.test.js"))
    assert tests, "the client is not built: make -C clients/typescript build"
    process = await asyncio.create_subprocess_exec(
        "node", "--test", "--test-reporter=tap", str(tests[0]),
        cwd=CLIENT,
        env={**os.environ, "RUVD_ADDRESS": address, "RUVD_ENGINE": engine},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output
    groups = re.findall(r"^ok \d+ - (.*?)( # SKIP.*)?$", output, re.MULTILINE)
    assert len(groups) == 6, output
    return [name for name, skipped in groups if skipped]


async def test_the_provider_passes_its_tests_on_the_echo_engine(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running:
        assert await skipped_groups(running.address, "echo") == ["on the embedded engine"]


async def test_the_provider_passes_its_tests_on_the_embedded_engine(
    daemon: StartDaemon,
) -> None:
    async with daemon(*LLAMA) as running:
        assert await skipped_groups(running.address, "llama") == ["on the echo engine"]
