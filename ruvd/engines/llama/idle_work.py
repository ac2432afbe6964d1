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

from ruvd.core.errors import RuvdError
from ruvd.core.ports.events import Observer, PromptEvaluated
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.llama.prompt_evaluation import STEP_TOKENS, Server
from ruvd.engines.llama.server import ROOT
from ruvd.engines.llama.slot_transfer import SlotMover
from ruvd.engines.llama.slots import Answered, Slot, SlotTable
from ruvd.engines.llama.state_files import StateFiles

# After how long without a turn a session's state is saved, for the next daemon; and where every
# slot holds a session, for the next ones that come at once.
_REST_SECONDS = 5.0
_REST_SECONDS_IF_FULL = 1.0
# For how long after a session was moved out of its slot there are more of them than slots: the next
# to go is saved before it has rested.
_CROWDED_SECONDS = 10.0
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
        self._save_after = 0.0

    async def run(self) -> None:
        """Do what there is to do, for as long as this runs."""
        while True:
            if child := self._child():
                await child.table.activity(_LOOK_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS if child else _LOOK_SECONDS)
            try:
                await self._look()
            except Exception:  # noqa: BLE001  # it is to go on
                _log.exception("work on idle slots failed")  # the next look tries again

    async def save_resting(self, seconds: float, *, at_once: bool = False) -> None:
        """Save what no file has and nobody has used for so long; `at_once` whoever waits."""
        child = self._child()
        if child is None or child.mover is None:
            return
        for slot in child.table.resting(seconds):
            if not at_once:
                await self._wait_until_uncontended()
            if self._child() is not child:
                return
            await _save(child, child.mover, slot)

    async def _look(self) -> None:
        child, files = self._child(), self._files()
        if child is None:
            return
        table = child.table
        for slot in table.answered if self._ahead else ():
            if not table.is_waited_for:
                await self._go_on(child, slot)
        if files is None or child.mover is None:
            return
        now = asyncio.get_running_loop().time()
        next_out = table.next_out(_CROWDED_SECONDS)
        if next_out and now >= self._save_after and not table.is_waited_for:
            await _save(child, child.mover, next_out)
            if next_out.dirty and not next_out.busy:  # it failed
                self._save_after = now + _REST_SECONDS
        if table.is_full:
            await self.save_resting(_REST_SECONDS_IF_FULL)
        if self._lasts():
            await self.save_resting(_REST_SECONDS)
            if table.is_idle:
                await files.seal(self._wait_until_uncontended)

    async def _go_on(self, child: Child, slot: Slot) -> None:
        """Evaluate what comes after the answer that the slot holds, whatever is said next."""
        server = Server(child.client, ROOT, self._model)
        async with child.table.try_acquire(slot) as lent:
            if not lent or slot.answered is None:  # the session has come back, or has ended
                return
            answered, slot.answered = slot.answered, None
            key, prompt = slot.session_key, slot.holds
            try:
                found = await server.following(answered.request, prompt.messages[-1].content)
                if found is None or not _is_short(answered, *found):
                    return
                if child.table.is_waited_for:
                    slot.answered = answered if slot.session_key == key else None
                    return
                count, seconds = await server.step(slot.id, found[0])
            except RuvdError as error:
                # The turn itself is going to say it, if it is still so by then.
                _log.debug("not evaluated ahead: %s", error)
                return
            if slot.session_key == key:
                slot.has(prompt, key)
                self._observer(PromptEvaluated(count, seconds, key))

    async def _wait_until_uncontended(self) -> None:
        """Return when nobody waits for a first token, because what takes the cores would delay it;
        or after a while, because somebody may always wait."""
        for _ in range(_LOOKS_AGAIN):
            child = self._child()
            if child is None or not child.table.is_waited_for:
                return
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _is_short(answered: Answered, tokens: list[int], rest: int) -> bool:
    """Whether only the rest is to be evaluated, which is not long: the answer was generated by the
    tokens that its text is read as. The last may have been the first of the rest."""
    return rest <= STEP_TOKENS and abs(len(tokens) - rest - answered.tokens) <= 1


async def _save(child: Child, mover: SlotMover, slot: Slot) -> None:
    async with child.table.try_acquire(slot) as lent:
        if lent:
            await asyncio.shield(slot.begin(mover.keep(slot)))
