"""The work on idle slots, done while no request waits for its first token.

After an answer, the template's end of it and the head of the next message are evaluated, which
every next turn would begin with (6 tokens). The content of a slot is saved before another session
needs the slot, which would otherwise wait for the save (measured: 16 of the 25 ms that a turn took
beside its own prompt), and when its session has rested for a while, for the next daemon.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ruvd.core.errors import RuvdError
from ruvd.core.ports.events import Observer, PromptEvaluated
from ruvd.engines.llama.prompt_evaluation import STEP_TOKENS
from ruvd.engines.llama.slot_transfer import RunningServer
from ruvd.engines.llama.slots import AnsweredRequest, Slot

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

_log = logging.getLogger("ruvd.engine")


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """The times of the work on idle slots.

    A session is saved after `rest_seconds` without a turn, for the next daemon, and after
    `full_rest_seconds` if every slot holds a session. For `crowded_seconds` after a session was
    moved out of its slot, the next one to be moved out is saved before it has rested.

    Slots are checked after a first token, after a release, and every `check_seconds`. A request
    that comes right after such an event has `pause_seconds` to go first. A save waits while a
    request waits for its first token, for `contention_checks` of `contention_check_seconds` at
    most, because such a request may always be waiting.
    """

    rest_seconds: float = 5.0
    full_rest_seconds: float = 1.0
    crowded_seconds: float = 10.0
    check_seconds: float = 0.5
    pause_seconds: float = 0.02
    contention_check_seconds: float = 0.02
    contention_checks: int = 100


DEFAULT_IDLE_POLICY = IdlePolicy()


class IdleWork:
    """Works on the idle slots of the current `server`, for as long as `run` runs.

    With `evaluate_ahead` the tokens that follow an answer are evaluated.
    """

    def __init__(
        self,
        server: Callable[[], RunningServer | None],
        *,
        evaluate_ahead: bool,
        observer: Observer,
        policy: IdlePolicy,
        sleep: Sleep,
    ) -> None:
        self._server = server
        self._evaluate_ahead = evaluate_ahead
        self._observer = observer
        self._policy = policy
        self._sleep = sleep
        self._no_save_before = 0.0

    async def run(self) -> None:
        """Checks the slots until it is cancelled."""
        policy = self._policy
        while True:
            if server := self._server():
                await server.slots.activity(policy.check_seconds)
            await self._sleep(policy.pause_seconds if server else policy.check_seconds)
            await self._check()

    async def _check(self) -> None:
        server, policy = self._server(), self._policy
        if server is None:
            return
        slots = server.slots
        for slot in slots.answered if self._evaluate_ahead else ():
            if not slots.is_contended:
                await self._evaluate_after_answer(server, slot)
        if server.transfer is None:
            return
        now = time.monotonic()
        next_slot = slots.next_eviction(policy.crowded_seconds)
        if next_slot and now >= self._no_save_before and not slots.is_contended:
            await server.save_if_idle(next_slot)
            if next_slot.unsaved and not next_slot.busy:  # the save failed
                self._no_save_before = now + policy.rest_seconds
        if slots.is_full:
            await self._save_unsaved(server, policy.full_rest_seconds)
        files = server.transfer.files
        if files.persist:
            await self._save_unsaved(server, policy.rest_seconds)
            if slots.is_idle:
                await files.seal(self._wait_until_uncontended)

    async def _save_unsaved(self, server: RunningServer, idle_seconds: float) -> None:
        """Saves the sessions in slots that have been idle for that long and are in no file."""
        for slot in server.slots.unsaved(idle_seconds):
            await self._wait_until_uncontended()
            if self._server() is not server:
                return
            await server.save_if_idle(slot)

    async def _evaluate_after_answer(self, server: RunningServer, slot: Slot) -> None:
        """Evaluates the tokens that follow the slot's answer whatever the next message is."""
        async with server.slots.try_acquire(slot) as is_acquired:
            if not is_acquired or slot.answered is None:  # the session has another turn or ended
                return
            answered, slot.answered = slot.answered, None
            key, content = slot.session_key, slot.content
            try:
                found = await server.evaluator.answer_tokens(
                    answered.request, content.messages[-1].content
                )
                if found is None or not _is_short(answered, *found):
                    return
                if server.slots.is_contended:
                    slot.answered = answered if slot.session_key == key else None
                    return
                count, seconds = await server.evaluator.evaluate(slot.id, found[0])
            except RuvdError as error:
                # The next turn fails with the same error if it persists.
                _log.debug("the end of an answer was not evaluated ahead: %s", error)
                return
            if slot.session_key == key:
                slot.set_content(content, key)
                self._observer(PromptEvaluated(count, seconds, key))

    async def _wait_until_uncontended(self) -> None:
        """Returns when no request waits for its first token, which this work would delay, or when
        the policy's limit is reached."""
        for _ in range(self._policy.contention_checks):
            server = self._server()
            if server is None or not server.slots.is_contended:
                return
            await self._sleep(self._policy.contention_check_seconds)


def _is_short(answered: AnsweredRequest, tokens: list[int], following: int) -> bool:
    """Whether nothing before the few tokens that follow has to be evaluated again: the text has
    the tokens that were generated. The last of those may be the first that follows."""
    return following <= STEP_TOKENS and abs(len(tokens) - following - answered.tokens) <= 1
