"""What tests of the embedded engine share: answers with their figures, sessions, what is saved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineDone, EngineRequest, EngineText
from ruvd.core.ports.events import EngineStateMoved, Event
from ruvd.engines.llama.engine import LlamaEngine
from ruvd.engines.llama.server import ROOT

SYSTEM = "You keep the harbour's ledger. Answer in one sentence, and only of what was said. " * 6
STORIES = {
    "ann": "The brig Fortuna came in from Lisbon with salt and oranges, and lay at the east mole. ",
    "ben": "Two trawlers were mended on the slip, and the smith was paid eleven crowns for it. ",
    "cay": "The ferry ran late since fog lay on the sound, and the bell was rung until noon. ",
    "dee": "A barge of timber broke loose in the night, and was found on the sand at low tide. ",
}


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


@asynccontextmanager
async def running(events: list[Event] | None = None, **settings: Any) -> AsyncIterator[LlamaEngine]:
    observer: Callable[[Event], None] = (lambda _: None) if events is None else events.append
    small = {"context_tokens": 1024, "answer_tokens": 256, "slots": 2, "threads": 1}
    engine = LlamaEngine(observer=observer, **{**small, **settings})
    await engine.start()
    try:
        await engine.ready()
        yield engine
    finally:
        await engine.close()


class Talk:
    """One session, told as the core would: its whole history each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages = [Message(Role.SYSTEM, SYSTEM)]

    def asks(self, text: str, **options: Any) -> EngineRequest:
        settings = {"max_tokens": 8, "temperature": 0.0, **options}
        messages = [*self.messages, Message(Role.USER, text)]
        return EngineRequest(messages, CompletionOptions(**settings), self.name)

    async def turn(self, engine: LlamaEngine, text: str, **options: Any) -> Answer:
        request = self.asks(text, **options)
        found = await answer(engine, request)
        self.messages = [*request.messages, Message(Role.ASSISTANT, found.text)]
        return found


def evaluated(found: Answer) -> int:
    return found.prompt_tokens - found.cached_tokens


def moved(events: list[Event]) -> list[tuple[str, str]]:
    return [(each.action, each.outcome) for each in events if isinstance(each, EngineStateMoved)]


async def tell_all(engine: LlamaEngine) -> dict[str, Talk]:
    talks = {name: Talk(name) for name in STORIES}
    for name, talk in talks.items():
        await talk.turn(engine, STORIES[name] * 4)
    return talks


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
    assert not any(slot.busy for slot in engine._prefix_cache.child().table._slots)
    await until(lambda: idle(engine))


def files(engine: LlamaEngine) -> list[Path]:
    return (
        sorted(engine._prefix_cache.files.directory.glob("*.kv"))
        if engine._prefix_cache.files
        else []
    )


def _ask(number: int) -> EngineRequest:
    options = CompletionOptions(max_tokens=8, temperature=0.0)
    return EngineRequest([Message(Role.USER, f"Say {number}.")], options)
