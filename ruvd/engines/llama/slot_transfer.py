"""The transfer of KV states between the slots of one server process and files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ruvd.core.errors import RuvdError
from ruvd.core.ports.events import EngineStateMoved, Observer
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import Refused
from ruvd.engines.llama.prompt import Prompt
from ruvd.engines.llama.prompt_evaluation import PromptEvaluator
from ruvd.engines.llama.slot_table import SlotTable
from ruvd.engines.llama.slots import Slot
from ruvd.engines.llama.state_files import State, StateFiles, unlink

T = TypeVar("T")

_log = logging.getLogger("ruvd.engine")


class _Action(msgspec.Struct):
    filename: str


class _Saved(msgspec.Struct):
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int


class SlotTransfer:
    """Saves slots of the server at `root` to files and restores them. `now` is a monotonic clock."""

    def __init__(
        self,
        client: ChatCompletionsClient,
        root: str,
        files: StateFiles,
        observer: Observer,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._root = root
        self._files = files
        self._observer = observer
        self._now = now

    async def save_session(self, slot: Slot) -> None:
        """Saves the session in the slot, unless it is saved already or too short."""
        if slot.is_worth_saving:
            await self.save(slot, slot.session_key)

    async def save(self, slot: Slot, session_key: str = "") -> State | None:
        """Saves the content of a slot, which the caller holds. Returns None if that failed, which
        is logged.

        With a `session_key` the state is that session's, and is deleted if the session has ended
        meanwhile.
        """
        path, content = self._files.new_path(), slot.content
        began = self._now()
        failure: Exception | None
        try:
            # The server would create the file with the permissions of the umask.
            await asyncio.to_thread(path.touch, 0o600)
            saved = await self._act(slot, "save", path.name, _Saved)
            # An older server reports a full disk by nothing else.
            failure = None if saved.n_written > 0 else OSError("nothing was written")
        except (RuvdError, OSError) as error:
            failure = error
        if failure is not None:
            _log.warning("slot %d could not be saved: %s", slot.id, failure)
            self._observer(EngineStateMoved("save", "failed", self._now() - began))
            await asyncio.to_thread(unlink, [path])
            return None
        state = State(path, content, session_key, saved.n_written)
        self._observer(EngineStateMoved("save", "ok", self._now() - began))
        if session_key and session_key != slot.session_key:
            await self._files.remove(state)
            return None
        if session_key:
            slot.unsaved = False
        await self._files.add(state)
        return state

    async def restore(self, slot: Slot, state: State) -> int:
        """Loads a file into a slot, which the caller holds. Returns the number of its tokens, or 0
        if that failed, which is logged."""
        began = self._now()
        if not await self._files.verify_checksum(state):
            _log.warning("the saved state of a session is corrupt")
            self._observer(EngineStateMoved("restore", "corrupt", self._now() - began))
            return 0
        slot.evaluation_started("")
        try:
            restored = await self._act(slot, "restore", state.path.name, _Restored)
        except RuvdError as error:
            _log.warning("slot %d could not be restored: %s", slot.id, error)
            self._observer(EngineStateMoved("restore", "failed", self._now() - began))
            # A connection that broke says nothing about the file, unless it breaks again.
            state.failures += 1
            if isinstance(error.__cause__, Refused) or state.failures > 1:
                await self._files.remove(state)
            return 0
        self._files.mark_used(state)
        # The session may have ended meanwhile.
        is_own = bool(slot.request_session) and slot.request_session == state.session_key
        slot.set_content(
            state.content or Prompt(), slot.request_session if is_own else "", unsaved=False
        )
        slot.session_has_ended = state.removed
        self._observer(EngineStateMoved("restore", "ok", self._now() - began))
        return restored.n_restored

    async def _act(self, slot: Slot, action: str, filename: str, into: type[T]) -> T:
        content = msgspec.json.encode(_Action(filename))
        url = f"{self._root}/slots/{slot.id}?action={action}"
        return await self._client.call("POST", url, into, content=content)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One server process: its client and slots; `transfer` is None if states are not saved."""

    client: ChatCompletionsClient
    evaluator: PromptEvaluator
    slots: SlotTable
    transfer: SlotTransfer | None
