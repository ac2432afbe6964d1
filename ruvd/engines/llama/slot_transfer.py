"""KV states on their way: out of one child's slots into files, and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from ruvd.core.errors import RuvdError
from ruvd.core.ports.events import EngineStateMoved, Observer
from ruvd.engines.chat.retryable import Refused
from ruvd.engines.llama.prompt import WORTH_CHARACTERS, Prompt
from ruvd.engines.llama.slots import Slot
from ruvd.engines.llama.state_files import State, StateFiles, unlink

T = TypeVar("T")

_log = logging.getLogger("ruvd.engine")


class Caller(Protocol):
    """Asks the server for something: the slot's id, the action, a file's name."""

    async def __call__(self, slot: int, action: str, filename: str, into: type[T]) -> T:
        """Raises RuvdError."""


class _Saved(msgspec.Struct):
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int


class SlotMover:
    """Moves states between one child's slots and the files. `act` asks the child."""

    def __init__(
        self, act: Caller, files: StateFiles, observer: Observer, now: Callable[[], float]
    ) -> None:
        self._act = act
        self._files = files
        self._observer = observer
        self._now = now

    async def keep(self, slot: Slot) -> None:
        """Save what the slot has of a session, unless it is saved or not worth it."""
        if slot.session_key and slot.dirty and slot.holds.size >= WORTH_CHARACTERS:
            await self.save(slot, slot.session_key)

    async def save(self, slot: Slot, session_key: str = "") -> State | None:
        """Save what the slot holds; None if that failed, which is logged. The slot is held.

        With a `session_key` it is that session's, and nothing if it ended meanwhile.
        """
        path, holds = self._files.new_path(), slot.holds
        begun = self._now()
        trouble: Exception | None
        try:
            # The server would make the file as the umask has it.
            await asyncio.to_thread(path.touch, 0o600)
            saved = await self._act(slot.id, "save", path.name, _Saved)
            # An older server says nothing else of a full disk.
            trouble = None if saved.n_written > 0 else OSError("nothing was written")
        except (RuvdError, OSError) as error:
            trouble = error
        if trouble is not None:
            _log.warning("slot %d could not be saved: %s", slot.id, trouble)
            self._observer(EngineStateMoved("save", "failed", self._now() - begun))
            await asyncio.to_thread(unlink, [path])
            return None
        seconds = self._now() - begun
        state = State(path, holds, session_key, saved.n_written)
        self._observer(EngineStateMoved("save", "ok", seconds))
        if session_key and session_key != slot.session_key:
            await self._files.remove(state)
            return None
        if session_key:
            slot.dirty = False
        await self._files.add(state)
        return state

    async def restore(self, slot: Slot, state: State) -> int:
        """Let the slot begin with what the file holds, and return its tokens; 0 if that failed.
        The slot is held."""
        begun = self._now()
        if not await self._files.verify_checksum(state):
            _log.warning("the state of a session is not as it was saved")
            self._observer(EngineStateMoved("restore", "corrupt", self._now() - begun))
            return 0
        slot.begins("")
        try:
            restored = await self._act(slot.id, "restore", state.path.name, _Restored)
        except RuvdError as error:
            _log.warning("slot %d could not be restored: %s", slot.id, error)
            self._observer(EngineStateMoved("restore", "failed", self._now() - begun))
            # A server that went away says nothing about the file; the second to do so may.
            state.failures += 1
            if isinstance(error.__cause__, Refused) or state.failures > 1:
                await self._files.remove(state)
            return 0
        self._files.used(state)
        # Whose session has ended meanwhile is nobody's.
        is_own = bool(slot.busy_for) and slot.busy_for == state.session_key
        slot.has(state.holds or Prompt(), slot.busy_for if is_own else "", dirty=False)
        slot.private = state.gone
        self._observer(EngineStateMoved("restore", "ok", self._now() - begun))
        return restored.n_restored
