"""The transfer of KV states between the slots of one server process and files."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ruvd.core.errors import RuvdError
from ruvd.core.ports.events import EngineStateMoved, Observer
from ruvd.core.tenants import tenant_of
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.retryable import Refused
from ruvd.engines.llama.prompt import Prompt
from ruvd.engines.llama.prompt_evaluation import PromptEvaluator
from ruvd.engines.llama.server import ROOT
from ruvd.engines.llama.slot_table import SlotTable
from ruvd.engines.llama.slots import Slot
from ruvd.engines.llama.state import State
from ruvd.engines.llama.state_files import StateFiles

T = TypeVar("T")

_log = logging.getLogger("ruvd.engine")


class _Saved(msgspec.Struct):
    n_written: int


class _Restored(msgspec.Struct):
    n_restored: int


class SlotTransfer:
    """Saves slots of one server process to files and restores them."""

    def __init__(
        self, client: ChatCompletionsClient, files: StateFiles, observer: Observer
    ) -> None:
        self._client = client
        self._observer = observer
        self.files = files

    async def save_session(self, slot: Slot) -> None:
        """Saves the session in the slot, unless it is saved already or too short."""
        if slot.is_worth_saving:
            await self.save(slot, slot.session_key)

    async def save(self, slot: Slot, session_key: str = "", source: str = "") -> State | None:
        """Saves a slot, which the caller holds; returns None if that failed, which is logged.

        With a `session_key` it is that session's state; otherwise its `source` is the session whose
        request has the slot, if one has. It is deleted if that session ended meanwhile.
        """
        name, content, size = "", slot.content, 0
        began = time.monotonic()
        failure: Exception | None = None
        try:
            async with self.files.transfer():
                # The server would create the file with the permissions of the umask.
                name = await self.files.create()
                saved = await self._act(slot, "save", name, _Saved)
                if saved.n_written > 0:
                    size = await self.files.saved(name, saved.n_written)
                else:  # an older server reports a full disk by nothing else
                    failure = OSError("nothing was written")
        except (RuvdError, OSError) as error:
            failure = error
        if failure is not None:
            _log.warning("slot %d could not be saved: %s", slot.id, failure)
            self._observer(EngineStateMoved("save", "failed", time.monotonic() - began))
            if name:
                await self.files.discard(name)
            return None
        state = State(name, content, session_key, size, source)
        self._observer(EngineStateMoved("save", "ok", time.monotonic() - began))
        has_ended = session_key and session_key != slot.session_key
        if has_ended or (source and source != slot.request_session):
            await self.files.remove(state)
            return None
        if session_key:
            slot.unsaved = False
        await self.files.add(state)
        return state

    async def restore(self, slot: Slot, state: State) -> int:
        """Loads a file into a slot, which the caller holds. Returns the number of its tokens, or 0
        if that failed, which is logged."""
        began = time.monotonic()
        if not await self.files.verify_checksum(state):
            _log.warning("the saved state of a session is corrupt")
            self._observer(EngineStateMoved("restore", "corrupt", time.monotonic() - began))
            return 0
        slot.evaluation_started("")
        tenant = state.content.tenant if state.content else tenant_of(state.session_key)
        slot.tenants |= {tenant}
        try:
            async with self.files.transfer():
                if not await self.files.prepare_restore(state):
                    _log.warning("the saved state of a session is corrupt")
                    self._observer(EngineStateMoved("restore", "corrupt", time.monotonic() - began))
                    return 0
                restored = await self._act(slot, "restore", state.name, _Restored)
        except (RuvdError, OSError) as error:
            _log.warning("slot %d could not be restored: %s", slot.id, error)
            self._observer(EngineStateMoved("restore", "failed", time.monotonic() - began))
            # A connection that broke says nothing about the file, unless it breaks again.
            state.failures += 1
            if isinstance(error.__cause__, Refused) or state.failures > 1:
                await self.files.remove(state)
            return 0
        self.files.mark_used(state)
        slot.tenants = frozenset((tenant,))
        # The session may have ended meanwhile.
        is_own = bool(slot.request_session) and slot.request_session == state.session_key
        slot.set_content(
            state.content or Prompt(), slot.request_session if is_own else "", unsaved=False
        )
        slot.session_has_ended = state.removed
        self._observer(EngineStateMoved("restore", "ok", time.monotonic() - began))
        return restored.n_restored

    async def _act(self, slot: Slot, action: str, filename: str, into: type[T]) -> T:
        content = msgspec.json.encode({"filename": filename})
        url = f"{ROOT}/slots/{slot.id}?action={action}"
        return await self._client.call("POST", url, into, content=content)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One server process: its client and slots; `transfer` is None if states are not saved."""

    client: ChatCompletionsClient
    evaluator: PromptEvaluator
    slots: SlotTable
    transfer: SlotTransfer | None

    async def save_if_idle(self, slot: Slot) -> None:
        """Saves the session in a slot, unless the slot is busy or states are not saved."""
        async with self.slots.try_acquire(slot) as is_acquired:
            if is_acquired and self.transfer is not None:
                await asyncio.shield(slot.run_to_end(self.transfer.save_session(slot)))
