"""What the embedded engine keeps of conversations, so that little is evaluated twice.

A slot's KV state is saved before another session takes the slot, when the session has rested for
a while, and before a stop; a session's turn begins from its own state, or from whatever begins as
its prompt does: a fork's parent, another session with the same system prompt. What is to be asked
soon is evaluated in idle time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.engine import EngineDone, EngineRequest
from ruvd.core.ports.events import EngineStateMoved, Observer, PromptEvaluated
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.llama.idle_work import Child, IdleWork
from ruvd.engines.llama.prefix_cache import SavedPrefixes
from ruvd.engines.llama.prompt import WORTH_CHARACTERS, prompt_of
from ruvd.engines.llama.prompt_evaluation import STEP_TOKENS, Server
from ruvd.engines.llama.server import ROOT
from ruvd.engines.llama.slot_transfer import SlotMover
from ruvd.engines.llama.slots import Slot, SlotTable
from ruvd.engines.llama.state_files import StateFiles

T = TypeVar("T")

_MOST_PREFIXES = 8
# A server that hangs does not keep the daemon from ending.
_SAVE_SECONDS = 5.0

_log = logging.getLogger("ruvd.engine")


class _Action(msgspec.Struct):
    filename: str


class LlamaWarm:
    """A `ports.Warm`. `most_bytes` 0 saves nothing; `path` None keeps it as long as the daemon.
    With `ahead` what follows an answer is evaluated before it is asked for."""

    def __init__(
        self,
        client: Callable[[], ChatCompletionsClient | None],
        *,
        slots: int,
        model: str,
        path: Path | None,
        most_bytes: int,
        ahead: bool,
        observer: Observer,
    ) -> None:
        self._client = client
        self._slots = slots
        self._model = model
        self._path = path
        self._most_bytes = most_bytes
        self._observer = observer
        self._child: Child | None = None
        self._files: StateFiles | None = None
        self._prefixes = SavedPrefixes(max(_MOST_PREFIXES, slots))
        self._removals: set[asyncio.Task[None]] = set()
        self._idle = IdleWork(
            self._running,
            files=lambda: self._files,
            lasts=lambda: self._lasts,
            model=model,
            ahead=ahead,
            observer=observer,
        )

    def open(self, private: Path, model: str) -> Path:
        """Where a new child is to save slots: where it was asked for or, if that cannot be had, in
        the `private` directory. `model` names what states depend on. Blocks."""
        if self._files and self._files.model != model:
            self._files.close()
            self._files = None
        if not self._most_bytes and self._path and self._path.is_dir():
            _empty(StateFiles(self._path, most_bytes=0, model=model))
        paths = [path for path in (self._path, private / "states") if path and self._most_bytes]
        for path in paths if self._files is None else ():
            files = StateFiles(path, most_bytes=self._most_bytes, model=model)
            try:
                files.open()
            except EngineUnavailable as error:
                _log.warning("%s", error)
            else:
                self._files = files
                break
        return self._files.directory if self._files else private

    @property
    def files(self) -> StateFiles | None:
        """The saved states; None if nothing is saved."""
        return self._files

    @property
    def _lasts(self) -> bool:
        """Whether the next daemon finds what is saved."""
        return self._files is not None and self._files.directory == self._path

    def child(self) -> Child:
        """The one that runs now. Raises EngineUnavailable if there is none any more."""
        client = self._client()
        if client is None:
            raise EngineUnavailable("the engine is closed")
        if self._child is None or self._child.client is not client:
            # Another child: it has nothing of what the last one had in its slots.
            mover = None
            if self._files:
                for outcome in self._files.refused:
                    self._observer(EngineStateMoved("restore", outcome))
                self._files.refused.clear()
                now = asyncio.get_running_loop().time
                mover = SlotMover(partial(_act, client), self._files, self._observer, now)
            self._child = Child(client, SlotTable(self._slots), mover)
        return self._child

    async def enter(
        self,
        child: Child,
        slot: Slot,
        request: EngineRequest,
        evaluate: Callable[[], Awaitable[EngineDone]] | None = None,
    ) -> EngineDone | None:
        """Make the slot ready for the request: nothing is lost, and it begins as well as it can.

        If the prompt had to be evaluated by itself for that, what that said.
        """
        if child.mover is None:
            return None
        await asyncio.shield(slot.begin(self._change(child, child.mover, slot, request)))
        if evaluate and request.prefix_key and self._slots > 1:
            return await self._prefixes.prepare(child.mover, slot, request, evaluate)
        return None

    def began(self, slot: Slot, done: EngineDone) -> None:
        """An answer was given in the slot, which may tell that its state was of no use."""
        cached = done.usage.cached_tokens if done.usage else None
        if slot.restored_tokens and cached is not None and cached < slot.restored_tokens / 2:
            self._observer(EngineStateMoved("restore", "stale"))
        slot.restored_tokens = 0

    async def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """See `Warm.prepare`."""
        child = self.child()
        server = Server(child.client, ROOT, self._model)
        tokens = await server.beginning(request)
        at = -1
        while at < len(tokens):
            async with child.table.hold(request, background=True) as slot:
                if child.table.has_turn(request.session_key):
                    return
                if at < 0 or slot.session_key != request.session_key:
                    await self.enter(child, slot, request)
                    at = await server.held(slot.holds, request, tokens)
                if at >= len(tokens):
                    return
                if slot.busy_for != request.session_key:  # it has ended meanwhile
                    return
                at = min(len(tokens), at + STEP_TOKENS)
                slot.begins(request.session_key)
                count, seconds = await server.step(slot.id, tokens[:at])
                if slot.busy_for != request.session_key:
                    slot.private = True
                    return
                slot.has(prompt_of(request), request.session_key)
            yield PromptEvaluated(count, seconds, request.session_key)

    def forget(self, session_key: str) -> None:
        """See `Warm.forget`."""
        if self._child is not None:
            self._child.table.end(session_key)
        states = self._files.of_session(session_key) if self._files else []
        if self._files and states:
            task = asyncio.create_task(self._files.remove(*states))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    def remembered(self) -> Collection[str]:
        """See `Warm.remembered`."""
        return self._files.sessions() if self._files else ()

    async def save(self) -> None:
        """See `Warm.save`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SAVE_SECONDS):
                if self._child is not None:
                    await self._child.table.wait_idle()  # what is being saved belongs to it
                await self._idle.save_resting(0.0, at_once=True)
                if self._files and self._lasts:
                    await self._files.seal()

    async def look(self) -> None:
        """Do what is done with slots that rest, for as long as this runs."""
        await self._idle.run()

    async def close(self) -> None:
        """Let go of the files. The child is gone."""
        if self._child is not None:
            await self._child.table.wait_idle()
        if self._removals:
            await asyncio.wait(self._removals)
        if self._files:
            await asyncio.to_thread(self._files.close)

    def _running(self) -> Child | None:
        """The one that was used last, if it is still there."""
        child = self._child
        return child if child and child.client is self._client() else None

    async def _change(
        self, child: Child, mover: SlotMover, slot: Slot, request: EngineRequest
    ) -> None:
        if slot.session_key != request.session_key:
            await mover.keep(slot)
        if request.options.bypass_cache or request.prefix_key or not self._files:
            return
        prompt = prompt_of(request)
        held = slot.holds.common(prompt)
        if prompt.size - held < WORTH_CHARACTERS:
            return
        is_here = bool(request.session_key) and slot.session_key == request.session_key
        state = self._files.best(prompt, "" if is_here else request.session_key, held)
        known = state.holds.common(prompt) if state and state.holds else prompt.size
        donor_slot = child.table.donor_slot(request, slot)
        if donor_slot and not (state and known >= donor_slot.holds.common(prompt)):
            async with child.table.try_acquire(donor_slot) as lent:
                state = await mover.save(donor_slot, donor_slot.session_key) if lent else state
        if state and not state.gone:
            is_unknown = state.holds is None
            tokens = await mover.restore(slot, state)
            if is_unknown:
                state.holds, slot.restored_tokens = prompt, tokens


def _empty(files: StateFiles) -> None:
    """Nothing is to be kept, and so nothing that an earlier daemon has kept."""
    with contextlib.suppress(EngineUnavailable):  # another daemon keeps it
        files.open()
        files.close()


async def _act(
    client: ChatCompletionsClient, slot: int, action: str, filename: str, into: type[T]
) -> T:
    content = msgspec.json.encode(_Action(filename))
    url = f"{ROOT}/slots/{slot}?action={action}"
    return await client.call("POST", url, into, content=content)
