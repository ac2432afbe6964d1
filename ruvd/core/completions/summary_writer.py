"""The requests for summaries that no caller waits for: they make way for callers at once.

What an interrupted request has brought is kept. The next one goes on with it if its prompt is the
same, which the engine still has evaluated.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from ruvd.core.completions.compactor import Compactor, WrittenSummary
from ruvd.core.completions.engines import ChosenEngine
from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.errors import RuvdError
from ruvd.core.model import Message
from ruvd.core.ports.engine import EngineRequest


class SummaryWriter:
    """Asks the engine for summaries.

    A default engine on this machine is used only while it is idle (`waits_for_idle`). One that
    `continues_answers` goes on with an answer that a prompt ends with. Other engines are elsewhere.
    """

    def __init__(
        self,
        compactor: Compactor,
        *,
        waits_for_idle: bool,
        continues_answers: bool,
    ) -> None:
        self._compactor = compactor
        self._waits_for_idle = waits_for_idle
        self._continues_answers = continues_answers
        # By session: the prompt of an interrupted summary, and what was written of it.
        self._begun: dict[str, tuple[Sequence[Message], list[str]]] = {}

    def is_elsewhere(self, chosen: ChosenEngine) -> bool:
        """Whether the engine is a server elsewhere, whose tokens may cost money."""
        return not (chosen.is_default and self._waits_for_idle)

    def slot(self, chosen: ChosenEngine, tenant: str) -> AbstractAsyncContextManager[None]:
        """Holds a slot of an idle engine, or for a server elsewhere one of those for batches."""
        if self.is_elsewhere(chosen):
            return chosen.scheduler.take(batch=True, tenant=tenant)
        return chosen.scheduler.take_spare()

    def forget(self, session_id: str) -> None:
        """Forgets what was begun of a summary."""
        self._begun.pop(session_id, None)

    async def write(
        self, session_id: str, request: EngineRequest, chosen: ChosenEngine
    ) -> WrittenSummary | None:
        """Returns the summary, for a caller that holds a slot, or None to ask again.

        That is the case if a completion wanted the engine first, and if the engine would not go on
        with what was begun. Raises as `Engine.generate` does.
        """
        if self.is_elsewhere(chosen):
            return await self._compactor.write(request, ahead=True)
        parts = self._parts(session_id, request.messages)
        was_begun = bool(parts)
        try:
            summary = await self._unless_wanted(chosen.scheduler, request, parts)
        except RuvdError:
            self.forget(session_id)
            if was_begun:
                return None
            raise
        if summary is not None:
            self.forget(session_id)
        return summary

    def _parts(self, session_id: str, prompt: Sequence[Message]) -> list[str]:
        """Returns what was written of a summary for this prompt, to be added to."""
        if not self._continues_answers:
            return []
        begun = self._begun.get(session_id)
        if begun is None or begun[0] != prompt:
            begun = self._begun[session_id] = (prompt, [])
        return begun[1]

    async def _unless_wanted(
        self, scheduler: SlotScheduler, request: EngineRequest, parts: list[str]
    ) -> WrittenSummary | None:
        writing = asyncio.create_task(self._compactor.write(request, ahead=True, parts=parts))
        wanted = asyncio.create_task(scheduler.wanted())
        try:
            await asyncio.wait([writing, wanted], return_when=asyncio.FIRST_COMPLETED)
            return writing.result() if writing.done() else None
        finally:
            for task in (writing, wanted):
                task.cancel()
            await asyncio.wait([writing, wanted])
            if not writing.cancelled():
                writing.exception()  # it no longer matters
