"""What tests of the embedded engine share: an answer with its figures, and what slots hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ruvd.engines.llama import LlamaEngine
from ruvd.engines.llama_server import ROOT
from ruvd.model import Message, Role
from ruvd.options import CompletionOptions
from ruvd.ports import EngineDone, EngineRequest, EngineText


class _Slot(msgspec.Struct):
    is_processing: bool


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds: float


async def answer(engine: LlamaEngine, request: EngineRequest) -> Answer:
    texts, done = [], None
    async for chunk in engine.generate(request):
        if isinstance(chunk, EngineText):
            texts.append(chunk.text)
        elif isinstance(chunk, EngineDone):
            done = chunk
    assert done is not None
    assert done.usage is not None
    assert done.usage.cached_tokens is not None
    assert done.prefill_seconds is not None
    return Answer(
        "".join(texts), done.usage.prompt_tokens, done.usage.cached_tokens, done.prefill_seconds
    )


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  what is awaited is in another process
            await asyncio.sleep(0.01)


async def idle(engine: LlamaEngine) -> bool:
    client = engine._server.client
    assert client is not None
    slots = await client.call("GET", f"{ROOT}/slots", list[_Slot])
    return not any(slot.is_processing for slot in slots)


async def all_is_well(engine: LlamaEngine) -> None:
    """No slot is lost: as many run side by side as there are, and each is told the truth."""
    assert engine.slots is not None
    async with asyncio.timeout(60):
        await asyncio.gather(*(answer(engine, _ask(n)) for n in range(2 * engine.slots)))
    assert not any(slot.busy for slot in engine._warm.child().table._slots)
    await until(lambda: idle(engine))


def files(engine: LlamaEngine) -> list[Path]:
    return sorted(engine._warm.files.directory.glob("*.kv")) if engine._warm.files else []


def _ask(number: int) -> EngineRequest:
    options = CompletionOptions(max_tokens=8, temperature=0.0)
    return EngineRequest([Message(Role.USER, f"Say {number}.")], options)
