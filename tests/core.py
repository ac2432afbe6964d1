"""The core in one process, put together as the daemon does, and how tests drive it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from fakes import FrozenClock, ScriptedEngine

from ruvd.core.completions.completion import Completion, CompletionPolicy, CompletionRequest
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.errors import RuvdError
from ruvd.core.model import CompletionEvent, Finished, Message, Role
from ruvd.core.ports.events import Event, Observer
from ruvd.core.ports.memory import Memory, UnlimitedMemory
from ruvd.core.ports.store import Store
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.stores.memory import MemoryStore


@dataclass
class Core:
    """The core on a memory store. `events` has all events, `observers` are told of them too."""

    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    clock: FrozenClock = field(default_factory=FrozenClock)
    policy: SessionPolicy = SessionPolicy()  # frozen
    completion_policy: CompletionPolicy = CompletionPolicy()
    events: list[Event] = field(default_factory=list)
    store: Store = field(default_factory=MemoryStore)
    observers: list[Observer] = field(default_factory=list)
    limits_of: LimitsOf = field(default=unlimited)
    memory: Memory = field(default_factory=UnlimitedMemory)

    def __post_init__(self) -> None:
        self.sessions = SessionRegistry(self.store, self.clock, self.observe, self.policy)
        self.commands = SessionCommands(
            self.sessions, self.store, self.clock, self.observe, self.policy
        )
        self.completions = CompletionRegistry(
            self.sessions,
            self.engine,
            self.clock,
            self.observe,
            self.completion_policy,
            self.limits_of,
            self.memory,
        )

    def observe(self, event: Event) -> None:
        self.events.append(event)
        for observer in self.observers:
            observer(event)

    def start(self, text: str = "hi", session_id: str = "s", **fields: object) -> Completion:
        messages = fields.pop("messages", (Message(Role.USER, text),))
        return self.completions.start(
            CompletionRequest(messages, session_id, **fields)  # type: ignore[arg-type]
        )

    async def say(self, text: str = "hi", session_id: str = "s", **fields: object) -> Finished:
        """One turn to its end."""
        events = await collect(self.start(text, session_id, **fields))
        finished = events[-1].event
        assert isinstance(finished, Finished)
        return finished

    async def history(self, session_id: str = "s") -> list[str]:
        state = await self.sessions.history(session_id)
        return [message.content for message in state.messages or ()]

    def prompts(self) -> list[Sequence[str]]:
        """The requests that the engine got, one for each generation."""
        return [[message.content for message in asked.messages] for asked in self.engine.requests]


async def collect(completion: Completion, after: int = 0) -> list[CompletionEvent]:
    async with aclosing(completion.events(after)) as events:
        return [event async for event in events]


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def failed(completion: Completion, error: type[RuvdError]) -> list[CompletionEvent]:
    """The events of a completion that ends with `error`."""
    events: list[CompletionEvent] = []
    with pytest.raises(error):
        async with aclosing(completion.events()) as stream:
            async for event in stream:
                events.append(event)  # noqa: PERF401  # what came before the error counts
    return events
