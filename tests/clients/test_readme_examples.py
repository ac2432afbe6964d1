"""The Python examples of the READMEs run as they are written, one after the other."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("readme", ["README.md", "clients/python/README.md"])
async def test_the_examples_of_the_readme_run(address: str, readme: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    assert len(examples) > 1
    for example in examples:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", example.replace("127.0.0.1:50051", address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "RUVD_ADDRESS": address},
        )  # fmt: skip
        async with asyncio.timeout(60):
            said, complaints = await process.communicate()
        assert (process.returncode, complaints) == (0, b""), example
        assert said.strip()
        if "tool_result" in example:
            assert said == b"12 degrees and rain in Bern\n"
