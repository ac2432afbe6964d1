"""Which slot of the server holds what, and who has which.

Every request gets its slot here: none waits in the server behind a busy slot while another is
idle, and a conversation comes back to what it left. A slot that holds a session goes to another
one last, as similar beginnings (the same system prompt) would move sessions out that are alive.
The server compares tokens itself, so what is wrong here costs time and never a wrong answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count

from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.llama.prompt import WORTH_CHARACTERS, Prompt, prompt_of

# About 64 tokens. Differences below are not worth to break the order of use.
_GRAIN_CHARACTERS = 256
_NOTHING = Prompt()


@dataclass(frozen=True, slots=True)
class Answered:
    """A session's request that was answered; with the answer it is `tokens` long."""

    request: EngineRequest
    tokens: int


@dataclass(eq=False, slots=True)
class Slot:
    """One of the server's. `used` 0 is never; `holds` is what it was last known to hold.

    `dirty` says that no file has what it holds of its session, `rests_since` (the loop's clock)
    when it was last given back, `restored_tokens` what an earlier daemon's file gave it just now.
    `busy_for` is the session of the request that has it, which may not be in it yet, and empty
    once that has ended; `answering` says that the request has had a first token. While `background`
    is set it is busy with what nobody waits for. What is `private` is of a session that has ended:
    it may be used where it is, and no file is to have it. `answered` is what it ends with, if
    nothing was evaluated after it.
    """

    id: int
    holds: Prompt = _NOTHING
    session_key: str = ""
    used: int = 0
    busy: bool = False
    busy_for: str = ""
    answering: bool = False
    dirty: bool = False
    private: bool = False
    answered: Answered | None = None
    rests_since: float = 0.0
    restored_tokens: int = 0
    duty: asyncio.Task[None] | None = None
    background: asyncio.Event | None = None

    def begins(self, session_key: str) -> None:
        """Something is evaluated in it, nobody knows how far."""
        self.answered = None
        if not session_key or session_key != self.session_key:
            self.holds, self.session_key, self.dirty = _NOTHING, session_key, False

    def has(
        self,
        prompt: Prompt,
        session_key: str,
        *,
        dirty: bool = True,
        answered: Answered | None = None,
    ) -> None:
        """It begins with the prompt."""
        self.holds, self.session_key, self.dirty, self.private = prompt, session_key, dirty, False
        self.answered = answered

    def end(self, session_key: str) -> None:
        """The session has ended: nothing here is its any more."""
        if self.busy_for == session_key:
            self.busy_for = ""
        if self.session_key == session_key:
            self.session_key, self.dirty, self.private = "", False, True
            self.answered = None

    def forget(self) -> None:
        """It holds nothing."""
        self.holds, self.session_key, self.used, self.dirty = _NOTHING, "", 0, False

    @property
    def is_at_work(self) -> bool:
        """Whether something is done to it that is going to its end."""
        return self.background is not None or (self.duty is not None and not self.duty.done())

    async def wait_idle(self) -> None:
        """Return when it has come to its end."""
        if self.background is not None:
            await self.background.wait()
        elif self.duty is not None:
            await asyncio.wait([self.duty])

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
        self._happened = asyncio.Event()
        self._waiting = 0
        self._moved_out = -math.inf

    def __len__(self) -> int:
        return len(self._slots)

    @asynccontextmanager
    async def hold(
        self, request: EngineRequest, *, background: bool = False
    ) -> AsyncGenerator[Slot, None]:
        """Have the slot that suits the request, once one is idle: first come, first served.

        A session waits for what is being done to its own: it has one slot at a time, or what the
        other holds of it would be taken for the session's.
        """
        key = request.session_key
        self._waiting += not background
        try:
            while True:
                while own := self._at_work_for(key):
                    await own.wait_idle()
                await self._idle.acquire()
                if self._at_work_for(key) is None:
                    break
                self._idle.release()
        finally:
            self._waiting -= not background
        slot = self.choose(request)
        slot.used = next(self._uses)
        if slot.session_key and slot.session_key != key:
            self._moved_out = _now()
        with self._busy(slot, background=background, busy_for=key):
            yield slot

    @asynccontextmanager
    async def try_acquire(self, slot: Slot) -> AsyncGenerator[bool, None]:
        """Have this slot in the background if it is idle; whether it is."""
        if slot.busy or self._idle.locked():
            yield False
            return
        await self._idle.acquire()  # at once, as it is not locked
        with self._busy(slot, background=True):
            yield True

    def end(self, session_key: str) -> None:
        """The session has ended."""
        for slot in self._slots if session_key else ():
            slot.end(session_key)

    def has_turn(self, session_key: str) -> bool:
        """Whether a request of the session has a slot, which nothing is to be prepared beside."""
        return bool(session_key) and any(
            slot.busy_for == session_key and slot.background is None for slot in self._slots
        )

    def _at_work_for(self, session_key: str) -> Slot | None:
        """The slot in which something is done that nobody has asked for with the session, or that
        was left by who asked; or that the session is being moved out of."""
        return next(
            (
                each
                for each in self._slots
                if session_key
                and session_key in (each.session_key, each.busy_for)
                and each.is_at_work
            ),
            None,
        )

    def resting(self, seconds: float) -> list[Slot]:
        """The idle ones that hold what no file has, and that nobody has used for so long."""
        before = _now() - seconds
        return [
            each
            for each in self._slots
            if each.dirty and each.session_key and not each.busy and each.rests_since <= before
        ]

    @property
    def answered(self) -> list[Slot]:
        """The idle ones that end with an answer of a session's."""
        return [each for each in self._slots if each.answered and not each.busy]

    def next_out(self, seconds: float) -> Slot | None:
        """The slot that has not been used for the longest time, which another session is likely to
        get: if it is idle and to be saved, and one was moved out of its slot within that time."""
        if self._moved_out < _now() - seconds:
            return None
        slot = min(self._slots, key=lambda slot: slot.used)
        is_due = slot.dirty and slot.session_key and slot.holds.size >= WORTH_CHARACTERS
        return slot if is_due and not slot.busy else None

    async def activity(self, seconds: float) -> None:
        """Return when somebody got a first token or gave a slot back, or after that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._happened.wait()
        self._happened.clear()

    def answers(self, slot: Slot) -> None:
        """Whoever has the slot has a first token."""
        if not slot.answering:
            slot.answering = True
            self._happened.set()

    @property
    def is_full(self) -> bool:
        """Whether every slot holds a session, so that the next one moves another out."""
        return all(slot.session_key for slot in self._slots)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for a first token."""
        return self._waiting > 0 or any(
            slot.busy and not slot.answering and slot.background is None for slot in self._slots
        )

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a slot."""
        return not any(slot.busy for slot in self._slots)

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

    def donor_slot(self, request: EngineRequest, slot: Slot) -> Slot | None:
        """An idle slot that has much more in common with the request than its own, for a fork or
        the same system prompt."""
        prompt = prompt_of(request)
        best = max(
            (each for each in self._slots if not each.busy and not each.private),
            key=lambda each: each.holds.common(prompt),
            default=None,
        )
        gain = best.holds.common(prompt) - slot.holds.common(prompt) if best else 0
        return best if gain >= WORTH_CHARACTERS else None

    async def wait_idle(self) -> None:
        """Return when what is being done to slots in the background has come to its end."""
        for slot in self._slots:
            if slot.is_at_work:
                await slot.wait_idle()

    @contextmanager
    def _busy(
        self, slot: Slot, *, background: bool, busy_for: str = ""
    ) -> Generator[None, None, None]:
        slot.busy, slot.busy_for, slot.answering = True, busy_for, False
        slot.background = asyncio.Event() if background else None
        try:
            yield
        finally:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        if slot.duty is not None and not slot.duty.done():
            slot.duty.add_done_callback(lambda _: self._release(slot))
            return
        slot.duty = None
        slot.busy, slot.busy_for = False, ""
        slot.rests_since = _now()
        if slot.background is not None:
            slot.background.set()
            slot.background = None
        else:
            self._happened.set()
        self._idle.release()


def _cost(slot: Slot, prompt: Prompt) -> tuple[bool, int, int]:
    """What is to be avoided, the worst first."""
    common = slot.holds.common(prompt)
    lost = slot.holds.size - common
    # Of what goes on from where it is every character counts.
    worth = common // _GRAIN_CHARACTERS * _GRAIN_CHARACTERS if lost else common
    return lost > 0 and bool(slot.session_key), -worth, slot.used


def _now() -> float:
    return asyncio.get_running_loop().time()
