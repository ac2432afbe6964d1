"""Long beginnings that many requests share: evaluated once, saved, restored into other slots.

A restore takes milliseconds where evaluating takes seconds. The request that comes first with a
prefix key is evaluated before it is answered, because the server saves no slot that is busy, and
the others are not to wait for a whole answer. What fails here is logged, and then the prompt is
evaluated as any other is. The files end with the child: what wrote them may read them, no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from ruvd.engines.llama_slots import WORTH_CHARACTERS, Prompt, Slot, prompt_of
from ruvd.errors import RuvdError
from ruvd.ports import EngineDone, EngineRequest

T = TypeVar("T")

_log = logging.getLogger("ruvd.engine")


class Caller(Protocol):
    """Asks the server for something: the slot's id, the action, a file's name."""

    async def __call__(self, slot: int, action: str, filename: str, into: type[T]) -> T:
        """Raises RuvdError."""


class _Saved(msgspec.Struct):
    n_saved: int
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int


@dataclass(eq=False, slots=True)
class _Entry:
    """One prefix. `filename` is empty if it is not saved."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tried: bool = False
    prompt: Prompt = Prompt()
    filename: str = ""
    size_bytes: int = 0


class SavedPrefixes:
    """The prefixes of one child, least recently used first, bounded in number and in bytes.

    `act` asks the child, whose files are in `directory`.
    """

    def __init__(self, act: Caller, directory: Path, *, most: int, most_bytes: int) -> None:
        self._act = act
        self._directory = directory
        self._most = most
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._numbers = count(1)

    async def prepare(
        self, slot: Slot, request: EngineRequest, evaluate: Callable[[], Awaitable[EngineDone]]
    ) -> EngineDone | None:
        """Let the slot begin with the request's prefix, if that is known to be worth it.

        The first request with its key is evaluated by `evaluate`; what that says is returned.
        """
        entry = self._entries.setdefault(request.prefix_key, _Entry())
        self._entries.move_to_end(request.prefix_key)
        prompt = prompt_of(request)
        async with entry.lock:
            if not entry.tried:
                return await self._evaluate(slot, request, entry, evaluate)
        gain = entry.prompt.common(prompt) - slot.holds.common(prompt)
        if entry.filename and gain >= WORTH_CHARACTERS:
            await asyncio.shield(slot.begin(self._restore(slot, entry)))
        return None

    async def copy(self, lender: Slot, slot: Slot) -> None:
        """Let the slot begin with what another, idle one holds."""
        held = lender.holds
        filename = f"copy-{next(self._numbers)}"
        slot.begins("")
        try:
            await self._act(lender.id, "save", filename, _Saved)
            await self._act(slot.id, "restore", filename, _Restored)
        except RuvdError as error:
            _log.warning("slot %d could not be copied: %s", lender.id, error)
        else:
            slot.has(held, "")
        finally:
            await asyncio.to_thread(self._remove, [filename])

    async def _evaluate(
        self,
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
        prompt = prompt_of(request)
        slot.has(prompt, request.session_key)
        await asyncio.shield(slot.begin(self._save(slot, entry, prompt)))
        return done

    async def _save(self, slot: Slot, entry: _Entry, prompt: Prompt) -> None:
        filename = f"prefix-{next(self._numbers)}"
        try:
            saved = await self._act(slot.id, "save", filename, _Saved)
            entry.prompt, entry.filename, entry.size_bytes = prompt, filename, saved.n_written
            await self._bound(entry)
        except RuvdError as error:
            _log.warning("slot %d could not be saved: %s", slot.id, error)
            await asyncio.to_thread(self._remove, [filename])
        finally:
            entry.tried = True

    async def _restore(self, slot: Slot, entry: _Entry) -> None:
        slot.begins("")
        try:
            await self._act(slot.id, "restore", entry.filename, _Restored)
        except RuvdError as error:
            _log.warning("slot %d could not be restored: %s", slot.id, error)
        else:
            slot.has(entry.prompt, "")

    async def _bound(self, new: _Entry) -> None:
        """Forget the least recently used, and what alone is too large."""
        removed = []
        if new.size_bytes > self._most_bytes:
            # Its key stays known, or each request would save it again.
            removed.append(new.filename)
            new.filename, new.size_bytes = "", 0
        for key, entry in list(self._entries.items()):
            total = sum(other.size_bytes for other in self._entries.values())
            if len(self._entries) <= self._most and total <= self._most_bytes:
                break
            if not entry.lock.locked():  # or else its first request is at it
                removed.append(entry.filename)
                del self._entries[key]
        await asyncio.to_thread(self._remove, [name for name in removed if name])

    def _remove(self, filenames: list[str]) -> None:
        for filename in filenames:
            (self._directory / filename).unlink(missing_ok=True)
