"""A real llama.cpp that needs too much memory fails alone, and the next turn is answered."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedded import SERVER, WatchedEngine, answer, running, until

from ruvd.core.errors import EngineRejected, EngineUnavailable
from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions, ResponseFormat
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import EngineStateChanged, Event

GROWTH_BYTES = 128 << 20
# The server aborts as C++ does, if it cannot allocate a gigabyte when it gets a signal.
GREEDY = """
import ctypes
def allocate(*_):
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    if malloc(ctypes.c_size_t(1 << 30)) is None:
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr)
        os.abort()
signal.signal(signal.SIGUSR1, allocate)
"""


def ask(text: str, **options: Any) -> EngineRequest:
    settings = {"max_tokens": 8, "temperature": 0.0, **options}
    return EngineRequest([Message(Role.USER, text)], CompletionOptions(**settings))


def resident_bytes(pid: int) -> int:
    """The memory of a process without mapped files."""
    sizes = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(sizes["RssAnon"].split()[0]) << 10


async def growing() -> dict[str, Any]:
    """The settings of an engine that may grow by GROWTH_BYTES."""
    async with running() as engine:
        assert engine.pid is not None
        return {"max_memory_bytes": resident_bytes(engine.pid) + GROWTH_BYTES}


async def ask_for_all_probabilities(engine: WatchedEngine) -> None:
    """Asks the server, past the daemon's validation, for what takes it 25 MB a token."""
    transport = httpx.AsyncHTTPTransport(uds=str(engine.wire.socket))
    headers = {"Authorization": engine.wire.authorization}
    body = {
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 500,
        "n_probs": 49_000,
        "ignore_eos": True,
    }
    async with httpx.AsyncClient(transport=transport, headers=headers, timeout=60) as http:
        with suppress(httpx.TransportError):
            await http.post("http://engine/v1/chat/completions", json=body)


async def test_answers_that_need_too_much_memory_fail_and_the_next_turn_is_answered() -> None:
    """The server fails them one by one, or aborts where it cannot and is replaced."""
    settings = await growing()
    async with running(**settings) as engine:
        pid = engine.pid
        assert pid is not None
        await answer(engine, ask("Say hello"))
        most = 0
        for _ in range(2):
            bombs = [asyncio.create_task(ask_for_all_probabilities(engine)) for _ in range(2)]
            while not all(bomb.done() for bomb in bombs):
                with suppress(OSError, KeyError):  # it may have ended
                    most = max(most, await asyncio.to_thread(resident_bytes, pid))
                await asyncio.sleep(0.01)
            await asyncio.gather(*bombs)
        assert most < settings["max_memory_bytes"] + (80 << 20)
        async with asyncio.timeout(60):
            await answer(engine, ask("Say hello"))


async def test_an_engine_that_aborts_at_its_limit_is_replaced_and_the_reason_is_told(
    tmp_path: Path,
) -> None:
    server = tmp_path / "llama-server"
    server.write_text(SERVER.replace("while True:", GREEDY + "while True:"))
    server.chmod(0o700)
    events: list[Event] = []
    own: dict[str, Any] = {
        "server_path": server,
        "server_args": ("--extra", "yes"),
        "max_memory_bytes": 500 << 20,
    }
    async with running(events, **own) as engine:
        pid = engine.pid
        assert pid is not None
        long = ask("Count to 1000", max_tokens=700, extra_body={"ignore_eos": True})
        call = asyncio.create_task(answer(engine, long))
        await until(engine.wire.busy)
        os.kill(pid, signal.SIGUSR1)
        with pytest.raises(EngineUnavailable):
            await call
        async with asyncio.timeout(60):
            await answer(engine, ask("Say hello"))
        assert engine.pid != pid
        (down,) = [each for each in events if isinstance(each, EngineStateChanged) and not each.up]
        limit = f"it reached its memory limit of {500 << 20} bytes (llama_max_memory_bytes)"
        assert limit in down.detail


async def test_a_schema_that_the_limit_has_no_room_for_is_refused_alone() -> None:
    settings = await growing()
    names = [f"property_{number}" for number in range(20_000)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    form = ResponseFormat(json.dumps(schema))
    async with running(**settings) as engine:
        pid = engine.pid
        with pytest.raises((EngineRejected, EngineUnavailable)):
            await answer(engine, ask("Say hello", response_format=form))
        async with asyncio.timeout(60):
            await answer(engine, ask("Say hello"))
        assert engine.pid == pid


async def test_a_limit_below_what_the_engine_uses_lets_it_answer() -> None:
    async with running(max_memory_bytes=0) as engine:
        pid = engine.pid
        await answer(engine, ask("word " * 500, max_tokens=100))
        assert engine.pid == pid
