"""Which slot of the server holds what, and who has which.

Every request gets its slot here: none waits in the server behind a busy slot while another is
idle, and a conversation comes back to what it left. A slot that holds a session goes to another
one last, as similar beginnings (the same system prompt) would move sessions out that are alive.
The server compares tokens itself, so what is wrong here costs time and never a wrong answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from ruvd.model import Message
from ruvd.options import Tool
from ruvd.ports import EngineRequest
from ruvd.texts import common_beginning

# About 64 tokens. Differences below are not worth to break the order of use.
_GRAIN_CHARACTERS = 256
# About 250 tokens: what is evaluated faster than it is worth to write a file.
WORTH_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a prompt is made of; sizes are characters of the messages."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()

    @property
    def size(self) -> int:
        """How long it is."""
        return sum(len(text) for message in self.messages for text in _texts(message))

    def common(self, other: Prompt) -> int:
        """How much it has in common with another at the beginning."""
        if self.tools != other.tools:
            return 0
        total = 0
        for one, two in zip(self.messages, other.messages, strict=False):
            if one.role is not two.role:
                break
            if _texts(one) != _texts(two):
                return total + common_beginning(one.content, two.content)
            total += sum(map(len, _texts(one)))
        return total


_NOTHING = Prompt()


@dataclass(eq=False, slots=True)
class Slot:
    """One of the server's. `used` 0 is never; `holds` is what it was last known to hold."""

    id: int
    holds: Prompt = _NOTHING
    session_key: str = ""
    used: int = 0
    busy: bool = False
    duty: asyncio.Task[None] | None = None

    def begins(self, session_key: str) -> None:
        """Something is evaluated in it, nobody knows how far."""
        if not session_key or session_key != self.session_key:
            self.holds, self.session_key = _NOTHING, session_key

    def has(self, prompt: Prompt, session_key: str) -> None:
        """It begins with the prompt."""
        self.holds, self.session_key = prompt, session_key

    def forget(self) -> None:
        """It holds nothing."""
        self.holds, self.session_key, self.used = _NOTHING, "", 0

    def begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do what is to be done to its end, also if the one who has the slot is cancelled; no
        other gets the slot before. One at a time, and it raises nothing."""
        self.duty = asyncio.create_task(work)
        return self.duty


class SlotTable:
    """The slots of one child; it begins empty, as the child does."""

    def __init__(self, slots: int) -> None:
        self._slots = [Slot(id_) for id_ in range(slots)]
        self._idle = asyncio.Semaphore(slots)
        self._uses = count(1)

    def __len__(self) -> int:
        return len(self._slots)

    @asynccontextmanager
    async def hold(self, request: EngineRequest) -> AsyncGenerator[Slot, None]:
        """Have the slot that suits the request, once one is idle: first come, first served."""
        await self._idle.acquire()
        slot = self.choose(request)
        slot.busy = True
        slot.used = next(self._uses)
        try:
            yield slot
        finally:
            self._give(slot)

    def choose(self, request: EngineRequest) -> Slot:
        """The idle slot that suits best.

        The session's own; or else one that holds no other session, what has most in common with
        the request first, then what was never used, then the least recently used. One whose
        content is not to be used has the least to lose instead.
        """
        idle = [slot for slot in self._slots if not slot.busy]
        if request.options.bypass_cache:
            return min(idle, key=lambda slot: (bool(slot.session_key), slot.holds.size, slot.used))
        for slot in idle:
            if request.session_key and slot.session_key == request.session_key:
                return slot
        prompt = prompt_of(request)
        return min(idle, key=lambda slot: _cost(slot, prompt))

    @asynccontextmanager
    async def lender(self, request: EngineRequest, slot: Slot) -> AsyncGenerator[Slot | None, None]:
        """An idle slot that has much more in common with the request than its own, for a fork or
        the same system prompt; kept from others meanwhile. None if there is none."""
        prompt = prompt_of(request)
        best = max(
            (each for each in self._slots if not each.busy),
            key=lambda each: each.holds.common(prompt),
            default=None,
        )
        gain = best.holds.common(prompt) - slot.holds.common(prompt) if best else 0
        if best is None or gain < WORTH_CHARACTERS or self._idle.locked():
            yield None
            return
        await self._idle.acquire()  # at once, as it is not locked
        best.busy = True
        try:
            yield best
        finally:
            self._give(best)

    async def settled(self) -> None:
        """Return when nothing is being done to a slot."""
        if duties := [slot.duty for slot in self._slots if slot.duty is not None]:
            await asyncio.wait(duties)

    def _give(self, slot: Slot) -> None:
        if slot.duty is not None and not slot.duty.done():
            slot.duty.add_done_callback(lambda _: self._give(slot))
            return
        slot.duty = None
        slot.busy = False
        self._idle.release()


def prompt_of(request: EngineRequest) -> Prompt:
    """What the request's prompt is made of."""
    return Prompt(tuple(request.messages), request.options.tools)


def _cost(slot: Slot, prompt: Prompt) -> tuple[bool, int, int]:
    """What is to be avoided, the worst first."""
    common = slot.holds.common(prompt)
    lost = slot.holds.size - common if slot.session_key else 0
    return lost > 0, -(common // _GRAIN_CHARACTERS), slot.used


def _texts(message: Message) -> tuple[str, ...]:
    """All of it that is sent."""
    calls = [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
    return (message.content, message.tool_call_id, *calls)
