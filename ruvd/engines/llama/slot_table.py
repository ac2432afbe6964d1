"""The slots of one server process, and which request has which slot.

Slots are assigned here and not by the server, which picks the most similar one: with 12 sessions
that share a system prompt on 4 slots it then keeps only that prompt (63 % cached, 0.7 to 1.1 s to
the first token), while sessions that are moved by their key evaluate 38 tokens a turn. No request
waits behind a busy slot while another is idle. The server compares tokens itself, so an error here
costs time and never gives a wrong answer.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count

from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.llama import slot_selection
from ruvd.engines.llama.slots import Slot


class SlotTable:
    """The slots of one server process, all empty at first. `now` is a monotonic clock."""

    def __init__(self, slots: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._slots = [Slot(id_) for id_ in range(slots)]
        self._idle = asyncio.Semaphore(slots)
        self._uses = count(1)
        self._changed = asyncio.Event()
        self._waiting = 0
        self._last_eviction = -math.inf

    def __len__(self) -> int:
        return len(self._slots)

    @asynccontextmanager
    async def acquire(
        self, request: EngineRequest, *, background: bool = False
    ) -> AsyncGenerator[Slot, None]:
        """Holds the slot that suits the request, once one is idle: first come, first served.

        A session waits for background work in its slot. If it had two slots, the one with less of
        it could be taken for its own later.
        """
        key = request.session_key
        self._waiting += not background
        try:
            while True:
                while own := self._background_slot_of(key):
                    await own.wait_idle()
                await self._idle.acquire()
                if self._background_slot_of(key) is None:
                    break
                self._idle.release()
        finally:
            self._waiting -= not background
        slot = slot_selection.best_slot(self._slots, request)
        slot.last_use = next(self._uses)
        if slot.session_key and slot.session_key != key:
            self._last_eviction = self._now()
        with self._busy(slot, background=background, session_key=key):
            yield slot

    @asynccontextmanager
    async def try_acquire(self, slot: Slot) -> AsyncGenerator[bool, None]:
        """Holds this slot for background work if it is idle; yields whether it is."""
        if slot.busy or self._idle.locked():
            yield False
            return
        await self._idle.acquire()  # at once, as it is not locked
        with self._busy(slot, background=True):
            yield True

    def end_session(self, session_key: str) -> None:
        """Records that a session has ended."""
        for slot in self._slots if session_key else ():
            slot.end_session(session_key)

    def adopt(self, session_key: str, prepared_key: str) -> None:
        """Gives a session the slot that was prepared under another key, in place of its own.

        What the session had may still be used in its slot, but is no longer saved.
        """
        prepared = [slot for slot in self._slots if slot.session_key == prepared_key]
        for slot in self._slots if prepared else ():
            if slot.session_key == session_key:
                slot.session_key, slot.unsaved, slot.answered = "", False, None
        for slot in prepared:
            slot.session_key = session_key

    def has_room(self, session_key: str) -> bool:
        """Whether a session can have a slot from which no other one would be moved out."""
        return any(slot.session_key in ("", session_key) for slot in self._slots)

    def has_turn(self, session_key: str) -> bool:
        """Whether a request of the session has a slot. Nothing may be prepared beside it."""
        return bool(session_key) and any(
            slot.request_session == session_key and slot.background is None for slot in self._slots
        )

    def _background_slot_of(self, session_key: str) -> Slot | None:
        """Returns the slot with background work that holds the session or is used for it."""
        return next(
            (
                slot
                for slot in self._slots
                if session_key
                and session_key in (slot.session_key, slot.request_session)
                and slot.has_background_work
            ),
            None,
        )

    def unsaved(self, idle_seconds: float) -> list[Slot]:
        """Returns the slots that have been idle for that long with a session in no file."""
        before = self._now() - idle_seconds
        return [
            slot
            for slot in self._slots
            if slot.unsaved and slot.session_key and not slot.busy and slot.idle_since <= before
        ]

    @property
    def answered(self) -> list[Slot]:
        """The idle slots whose content ends with an answer to a session."""
        return [slot for slot in self._slots if slot.answered and not slot.busy]

    def next_eviction(self, seconds: float) -> Slot | None:
        """Returns the slot to save before its session is moved out, or None if there is none, or
        if no session was moved out of its slot within the last `seconds`."""
        if self._last_eviction < self._now() - seconds:
            return None
        return slot_selection.next_eviction(self._slots)

    def donor_slot(self, request: EngineRequest, slot: Slot) -> Slot | None:
        """See `slot_selection.donor_slot`."""
        return slot_selection.donor_slot(self._slots, request, slot)

    async def activity(self, seconds: float) -> None:
        """Returns after the next first token or release of a slot, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def answer_began(self, slot: Slot) -> None:
        """Records that the request in the slot has its first token."""
        if not slot.has_first_token:
            slot.has_first_token = True
            self._changed.set()

    @property
    def is_full(self) -> bool:
        """Whether every slot holds a session, so that a new one moves another out."""
        return all(slot.session_key for slot in self._slots)

    @property
    def is_contended(self) -> bool:
        """Whether a request waits for a slot or for its first token."""
        return self._waiting > 0 or any(
            slot.busy and not slot.has_first_token and slot.background is None
            for slot in self._slots
        )

    @property
    def is_idle(self) -> bool:
        """Whether all slots are idle."""
        return not any(slot.busy for slot in self._slots)

    async def wait_idle(self) -> None:
        """Returns when the background work in all slots has ended."""
        for slot in self._slots:
            if slot.has_background_work:
                await slot.wait_idle()

    @contextmanager
    def _busy(
        self, slot: Slot, *, background: bool, session_key: str = ""
    ) -> Generator[None, None, None]:
        slot.busy, slot.request_session, slot.has_first_token = True, session_key, False
        slot.background = asyncio.Event() if background else None
        try:
            yield
        finally:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        if slot.task is not None and not slot.task.done():
            slot.task.add_done_callback(lambda _: self._release(slot))
            return
        slot.task = None
        slot.busy, slot.request_session = False, ""
        slot.idle_since = self._now()
        if slot.background is not None:
            slot.background.set()
            slot.background = None
        else:
            self._changed.set()
        self._idle.release()
