"""What is done with slots that rest, while nobody waits for a first token.

Where an answer has ended, the template's end of it and the head of the next message are evaluated,
which every next turn would begin with. What a slot holds of a session is saved: before another
session needs the slot, which would wait for it (measured: 16 of its 25 ms beside its own prompt),
and when the session has rested for a while, for the next daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ruvd.engines.chat_completions import ChatCompletionsClient
from ruvd.engines.llama_ahead import STEP_TOKENS, Server
from ruvd.engines.llama_mover import SlotMover
from ruvd.engines.llama_server import ROOT
from ruvd.engines.llama_slots import Slot, SlotTable
from ruvd.engines.llama_states import StateFiles
from ruvd.errors import RuvdError
from ruvd.ports import Observer, PromptEvaluated

# After how long without a turn a session's state is saved, for the next daemon; and where every
# slot holds a session, for the next ones that come at once.
_REST_SECONDS = 5.0
_REST_SECONDS_IF_FULL = 1.0
# How often that is looked after if nothing happens; and after what happened, how long whoever comes
# right after is given to be first.
_LOOK_SECONDS = 0.5
_PAUSE_SECONDS = 0.02
# How often, and how many times, again while somebody waits for a first token, and not for a save
# too.
_LOOK_AGAIN_SECONDS = 0.02
_LOOKS_AGAIN = 100

_log = logging.getLogger("ruvd.engine")


@dataclass(frozen=True, slots=True)
class Child:
    """One child, what is known of its slots, and the way in and out of them, if there is one."""

    client: ChatCompletionsClient
    table: SlotTable
    mover: SlotMover | None


class IdleWork:
    """Looks after the slots of the `child` that runs now, for as long as `run` does.

    `files` are where states are saved, `lasts` is whether the next daemon finds them there. With
    `ahead` what follows an answer is evaluated.
    """

    def __init__(
        self,
        child: Callable[[], Child | None],
        *,
        files: Callable[[], StateFiles | None],
        lasts: Callable[[], bool],
        model: str,
        ahead: bool,
        observer: Observer,
    ) -> None:
        self._child = child
        self._files = files
        self._lasts = lasts
        self._model = model
        self._ahead = ahead
        self._observer = observer

    async def run(self) -> None:
        """Do what there is to do, for as long as this runs."""
        while True:
            child = self._child()
            happened = child is not None and await child.table.happened(_LOOK_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS if child else _LOOK_SECONDS)
            try:
                await self._look(happened=happened)
            except Exception:  # noqa: BLE001  # it is to go on
                _log.exception("work on idle slots failed")  # the next look tries again

    async def save_resting(self, seconds: float, *, at_once: bool = False) -> None:
        """Save what no file has and nobody has used for so long; `at_once` whoever waits."""
        child = self._child()
        if child is None or child.mover is None:
            return
        for slot in child.table.resting(seconds):
            if not at_once:
                await self._quiet()
            if self._child() is not child:
                return
            await _save(child, child.mover, slot)

    async def _look(self, *, happened: bool) -> None:
        child, files = self._child(), self._files()
        if child is None:
            return
        table = child.table
        for slot in table.answered if self._ahead else ():
            if not table.is_waited_for:
                await self._go_on(child, slot)
        if files is None:
            return
        if table.is_full:
            next_out = table.next_out
            is_wanted = next_out and not table.sessions.issuperset(files.sessions())
            if happened and is_wanted and not table.is_waited_for and child.mover and next_out:
                await _save(child, child.mover, next_out)
            await self.save_resting(_REST_SECONDS_IF_FULL)
        if self._lasts():
            await self.save_resting(_REST_SECONDS)
            if table.is_idle:
                await files.seal(self._quiet)

    async def _go_on(self, child: Child, slot: Slot) -> None:
        """Evaluate what comes after the answer that the slot holds, whatever is said next."""
        server = Server(child.client, ROOT, self._model)
        async with child.table.borrow(slot) as lent:
            if not lent:
                return
            key, prompt = slot.session_key, slot.holds
            end, slot.answer_end = slot.answer_end, 0
            try:
                tokens = await server.beginning(prompt)
                # Or else it writes answers in another way than they are generated, such as without
                # the thoughts, and all of it would be evaluated again.
                if abs(len(tokens) - end) > STEP_TOKENS:
                    return
                count, seconds = await server.step(slot.id, tokens)
            except RuvdError as error:
                # The turn itself is going to say it, if it is still so by then.
                _log.debug("not evaluated ahead: %s", error)
                return
            if slot.session_key == key:
                slot.has(prompt, key)
                self._observer(PromptEvaluated(count, seconds, key))

    async def _quiet(self) -> None:
        """Return when nobody waits for a first token, because what takes the cores would delay it;
        or after a while, because somebody may always wait."""
        for _ in range(_LOOKS_AGAIN):
            child = self._child()
            if child is None or not child.table.is_waited_for:
                return
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _save(child: Child, mover: SlotMover, slot: Slot) -> None:
    async with child.table.borrow(slot) as lent:
        if lent:
            await asyncio.shield(slot.begin(mover.keep(slot)))
