"""OpenAI's own clients for Node and Go against the daemon. `make test-clients` builds them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from http_door import HTTP, base_url
from running import StartDaemon

CLIENTS = Path(__file__).parents[1] / "openai_clients"
NODE = ("node", str(CLIENTS / "node" / "client.mjs"))
GO = (str(CLIENTS / "go" / ".bin" / "client"),)
EXPECTED = {
    "answer": "hello you",
    "tokens": 4,
    "stream": "hello you",
    "tool": ["look", {"text": "please look"}],
    "structured": {"text": "hi"},
    "sessionTokens": 3,
    "error": [400, "context_length_exceeded"],
    "response": ["one two", 5],
}


async def seen_by(daemon: StartDaemon, *command: str) -> dict[str, Any]:
    async with daemon("--engine", "echo", "--echo-faults", *HTTP) as running:
        process = await asyncio.create_subprocess_exec(
            *command, await base_url(running), "s", stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(100):
            output, _ = await process.communicate()
        assert process.returncode == 0
    seen: dict[str, Any] = json.loads(output)
    return seen


def check(seen: dict[str, Any]) -> None:
    events = seen.pop("events")
    assert seen == EXPECTED
    numbers = [number for _, number in events]
    assert numbers == sorted(set(numbers))
    assert (events[0][0], events[-1][0]) == ("response.created", "response.completed")


@pytest.mark.languages
async def test_the_client_for_node(daemon: StartDaemon) -> None:
    check(await seen_by(daemon, *NODE))


@pytest.mark.languages
async def test_the_client_for_go(daemon: StartDaemon) -> None:
    check(await seen_by(daemon, *GO))
