"""The clients of all languages against a real daemon: conformance, restarts and examples.

clients/CONFORMANCE.md specifies the programs. Except for Python, they have to be built before
(`make test-clients`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conformance_run import (
    CALLS_TRANSCRIPT,
    TRANSCRIPT,
    calls_transcript,
    joined,
    restarted,
    transcript,
)
from ports import free_port
from running import RunningDaemon, StartDaemon

CLIENTS = Path(__file__).parents[2] / "clients"


def built(*languages: str) -> list[Any]:
    """Returns the languages as parameters of tests that need their clients built."""
    return [pytest.param(name, marks=pytest.mark.languages) for name in languages]


PYTHON = ["python", "python --asyncio"]
NOT_PYTHON = built("typescript", "go", "java", "rust")
FLAVOURS = [*PYTHON, *NOT_PYTHON]
START_SECONDS = 60.0
ANSWER = " ".join(f"w{number}" for number in range(1, 41))
pytestmark = pytest.mark.timeout(300)


def program(language: str) -> str:
    """Returns the script that runs the language's programs."""
    run = CLIENTS / language / "run"
    assert os.access(run, os.X_OK), f"there is no {run}: is the client complete?"
    return str(run)


def command(flavour: str) -> list[str]:
    language, *options = flavour.split()
    return [program(language), "conformance", *options]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_every_client_prints_the_same_transcript(flavour: str) -> None:
    output = await transcript(command(flavour), CLIENTS)
    assert joined(output) == joined(TRANSCRIPT.read_text())
    _, _, cut = output.partition("# cut after the third event")
    numbers = re.findall(r"^event (\d+) ", cut, re.MULTILINE)
    assert [*map(int, numbers)] == [*range(1, len(numbers) + 1)]


def test_only_the_pieces_of_cut_streams_are_joined() -> None:
    whole = "text [a]\ntext [ b]\nfinished STOP sequence=4 exchanges=1\n"
    assert joined(f"# stream\n{whole}") == f"# stream\n{whole}".rstrip()
    cut = "text [a b]\nfinished STOP exchanges=1"
    assert joined(f"# cut always\n{whole}# cancel\n{whole}") == (
        f"# cut always\n{cut}\n# cancel\n{whole}".rstrip()
    )
    events = "event 1 started\nevent 2 delta [a]\nevent 3 delta [ b]\nevent 4 finished STOP [a b]"
    assert joined(f"# cut after\n{events}") == (
        "# cut after\nstarted\ndelta [a b]\nfinished STOP [a b]"
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_every_client_makes_every_call_with_the_same_results(flavour: str) -> None:
    assert await calls_transcript(command(flavour), CLIENTS) == CALLS_TRANSCRIPT.read_text()


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_an_answer_lost_with_a_killed_daemon_is_a_typed_error(flavour: str) -> None:
    """Text was delivered, so it is not generated again, and the session has no turn."""
    output = await restarted(command(flavour), CLIENTS, committed=False)
    assert output == "error NOT_FOUND COMPLETION_NOT_FOUND\nerror NOT_FOUND SESSION_NOT_FOUND\n"


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_committed_answer_is_delivered_completely_after_a_restart(
    flavour: str,
) -> None:
    output = await restarted(command(flavour), CLIENTS, committed=True)
    assert output == f"text [{ANSWER}]\nsession omega messages=2 exchanges=1\n"


# --- examples --------------------------------------------------------------------------------


@asynccontextmanager
async def example(language: str, running: RunningDaemon) -> AsyncIterator[httpx.AsyncClient]:
    """Runs the language's example and yields an HTTP client for it."""
    port, log = free_port(), running.folder / "example.txt"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program(language), "example",
            env={**os.environ, "PORT": str(port), "RUVD_ADDRESS": running.address},
            stdout=output,
            stderr=output,
        )  # fmt: skip
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
        ) as http:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    assert process.returncode is None, (
                        f"the example has ended (make -C clients/{language} build?): "
                        f"{log.read_text()}"
                    )
                    with contextlib.suppress(httpx.TransportError):
                        await http.get("/")
                        break
                    await asyncio.sleep(0.1)
            yield http
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(START_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def chat(http: httpx.AsyncClient, message: str) -> list[tuple[str, object]]:
    """Returns the kinds and data of an answer's events."""
    query = {"session": "ada", "message": message}
    async with http.stream("GET", "/chat", params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        body = (await response.aread()).decode()
    events = []
    for block in body.replace("\r", "").strip().split("\n\n"):
        fields = dict(line.split(":", 1) for line in block.split("\n"))
        events.append((fields.get("event", "message").strip(), json.loads(fields["data"])))
    return events


@pytest.mark.parametrize("language", ["python", *NOT_PYTHON])
async def test_the_example_streams_to_a_browser(daemon: StartDaemon, language: str) -> None:
    flags = ("--engine", "echo", "--echo-faults", "--echo-delay-seconds", "0.1")
    async with daemon(*flags) as running, example(language, running) as http:
        events = await chat(http, "Grüße aus 世界")
        assert events[-1] == ("done", {})
        assert {kind for kind, _ in events[:-1]} == {"message"}
        assert len(events) > 2  # in pieces, not all at once
        assert "".join(str(data) for _, data in events[:-1]) == "Grüße aus 世界"

        kind, data = (await chat(http, "!fault ENGINE_REJECTED one"))[-1]
        assert kind == "error"
        assert isinstance(data, dict)
        assert data["reason"] == "ENGINE_REJECTED"

        # Leaving the page cancels the answer long before its end.
        long = " ".join(["word"] * 600)
        query = {"session": "bob", "message": long}
        async with http.stream("GET", "/chat", params=query) as response:
            async for _ in response.aiter_lines():
                break
        line = await running.logged("completion failed", session_id="bob")
        assert line["reason"] == "COMPLETION_CANCELLED"
        assert line["total_ms"] < 30_000
