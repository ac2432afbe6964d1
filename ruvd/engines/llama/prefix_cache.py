"""Long beginnings that many requests share: evaluated once, saved, restored into other slots.

The request that comes first with a prefix key is evaluated before it is answered, because the
server saves no slot that is busy, and the others are not to wait for a whole answer. What fails
here is logged, and then the prompt is evaluated as any other is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import EngineDone, EngineRequest
from ruvd.engines.llama.prompt import WORTH_CHARACTERS, prompt_of
from ruvd.engines.llama.slot_transfer import SlotMover
from ruvd.engines.llama.slots import Slot
from ruvd.engines.llama.state_files import State

_log = logging.getLogger("ruvd.engine")


@dataclass(eq=False, slots=True)
class _Entry:
    """One prefix. `state` is None if it is not saved; `tried` says that it was tried."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tried: bool = False
    state: State | None = None


class SavedPrefixes:
    """The prefixes that were asked for, `most` at most, least recently used first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def prepare(
        self,
        mover: SlotMover,
        slot: Slot,
        request: EngineRequest,
        evaluate: Callable[[], Awaitable[EngineDone]],
    ) -> EngineDone | None:
        """Let the slot begin with the request's prefix, if that is known to be worth it.

        The first request with its key is evaluated by `evaluate`; what that says is returned.
        """
        entry = self._entries.setdefault(request.prefix_key, _Entry())
        self._entries.move_to_end(request.prefix_key)
        self._bound()
        while True:
            async with entry.lock:
                if entry.state is not None and entry.state.gone:
                    entry.tried, entry.state = False, None
                if not entry.tried:
                    return await self._evaluate(mover, slot, request, entry, evaluate)
            state, prompt = entry.state, prompt_of(request)
            if state is None or state.holds is None:
                return None
            gain = state.holds.common(prompt) - slot.holds.common(prompt)
            if gain < WORTH_CHARACTERS:
                return None
            await asyncio.shield(slot.begin(_restore(mover, slot, state)))
            if not state.gone or slot.holds.size:
                return None  # or else the file was broken, and somebody has to make another

    async def _evaluate(
        self,
        mover: SlotMover,
        slot: Slot,
        request: EngineRequest,
        entry: _Entry,
        evaluate: Callable[[], Awaitable[EngineDone]],
    ) -> EngineDone | None:
        try:
            done = await evaluate()
        except RuvdError as error:
            # If it is serious the request itself is going to say it.
            _log.info("a shared prefix could not be evaluated by itself: %s", error)
            entry.tried = True
            return None
        slot.has(prompt_of(request), slot.busy_for)
        await asyncio.shield(slot.begin(self._save(mover, slot, entry)))
        return done

    async def _save(self, mover: SlotMover, slot: Slot, entry: _Entry) -> None:
        try:
            state = await mover.save(slot)
            # What is too large stays known as that, or each request would save it again.
            entry.state = None if state is None or state.gone else state
        finally:
            entry.tried = True

    def _bound(self) -> None:
        """Forget the least recently used; what their files take is bounded by itself."""
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= self._most:
                return
            if not entry.lock.locked():  # or else its first request is at it
                del self._entries[key]


async def _restore(mover: SlotMover, slot: Slot, state: State) -> None:
    await mover.restore(slot, state)
