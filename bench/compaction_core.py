"""The core of a daemon in this process, for the benchmarks of compaction.

It is put together as the daemon does, on a memory store. Only gRPC is left out. The engine is the
embedded one, or one of the benchmark's own. Every request to it is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ruvd.config.loader import load
from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.model import ContextWindow, Delta, Finished, Message, Role, Session, Started
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.background import start_unsupervised
from ruvd.core.ports.engine import Engine, EngineChunk, EngineRequest
from ruvd.core.ports.engine_wrapper import EngineWrapper
from ruvd.core.ports.events import Event
from ruvd.core.ports.memory import UnlimitedMemory
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession
from ruvd.core.statistics import Statistics
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.server.composition import Core, build_core
from ruvd.server.engine_composition import build_engine
from ruvd.server.observers import Observers
from ruvd.server.system_clock import SystemClock
from ruvd.stores.memory import MemoryStore

_IDLE_SECONDS = 60.0


class RecordingEngine(EngineWrapper):
    """Keeps the last request that was not for a summary."""

    last: EngineRequest | None = None

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        if not request.background:
            self.last = request
        async with aclosing(super().generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk


@dataclass
class Turn:
    """A turn: its seconds to the first token, its events, and the text of its prompt."""

    first_token_seconds: float
    started: Started
    finished: Finished
    prompt: str


@dataclass
class Harness:
    """The core, and all its events."""

    core: Core
    engine: RecordingEngine
    events: list[Event] = field(default_factory=list)

    async def create(self, session_id: str, window: ContextWindow, system_prompt: str) -> None:
        """Creates a session."""
        new = NewSession(session_id, system_prompt, context_window=window)
        await self.core.commands.create(new)

    async def session(self, session_id: str) -> Session:
        """Returns a session."""
        return (await self.core.sessions.get(session_id)).session

    async def say(
        self, session_id: str, text: str, *, max_tokens: int = 48, pinned: bool = False
    ) -> Turn:
        """Runs a turn to its end."""
        began = asyncio.get_running_loop().time()
        request = CompletionRequest(
            (Message(Role.USER, text, pinned=pinned),),
            session_id,
            CompletionOptions(max_tokens=max_tokens, temperature=0.0),
        )
        completion = self.core.completions.start(request)
        first, started, finished = None, None, None
        async with aclosing(completion.events()) as events:
            async for event in events:
                match event.event:
                    case Started():
                        started = event.event
                    case Delta() if first is None:
                        first = asyncio.get_running_loop().time() - began
                    case Finished():
                        finished = event.event
        assert started is not None
        assert finished is not None
        sent = self.engine.last
        prompt = "\n".join(message.content for message in sent.messages) if sent else ""
        return Turn(first or 0.0, started, finished, prompt)

    async def ask(self, session_id: str, text: str) -> Turn:
        """Asks in a fork of the session, which itself goes on as if nothing was asked."""
        fork = (await self.core.commands.fork(NewFork(session_id))).session
        try:
            return await self.say(fork.id, text, max_tokens=24)
        finally:
            await self.core.commands.end(fork.id)

    async def rest(self, session_id: str, seconds: float = _IDLE_SECONDS) -> None:
        """Waits until no summary of the session is due, for `seconds` at most."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
            if not self.core.ahead_compaction.takes(await self.session(session_id)):
                return


@asynccontextmanager
async def running(own_engine: Engine | None = None, **flags: Any) -> AsyncIterator[Harness]:
    """Runs the core with these settings."""
    settings, _ = load({"store": "memory", **flags})
    observers, clock, statistics = Observers(), SystemClock(""), Statistics()
    made = own_engine or build_engine(settings, observers, start_unsupervised, [], None)
    recording = RecordingEngine(made)
    core = build_core(
        settings,
        clock,
        MemoryStore(),
        recording,
        observers,
        TenantStatistics(statistics),
        UnlimitedMemory(),
    )
    harness = Harness(core, recording)
    observers.add(harness.events.append)
    observers.add(core.compactions)
    observers.add(core.ahead_compaction)
    runs = [core.ahead_compaction.run]
    if core.prewarmer:
        observers.add(core.prewarmer)
        runs.append(core.prewarmer.run)
    tasks = [asyncio.create_task(run()) for run in runs]
    await recording.start()
    await recording.ready()
    try:
        yield harness
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await recording.close()
