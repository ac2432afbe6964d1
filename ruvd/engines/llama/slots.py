"""The state of one slot of the server: its content, and the work that is done in it."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.llama.prompt import MIN_REUSED_CHARACTERS, Prompt

_EMPTY = Prompt()

_log = logging.getLogger("ruvd.engine")


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """A request of a session, and its length in tokens together with the answer to it."""

    request: EngineRequest
    tokens: int


@dataclass(eq=False, slots=True)
class Slot:
    """One slot of the server.

    The slot begins with `content`, which belongs to the session `session_key` and is in no file if
    `unsaved`. The content of a session that has ended may be used in the slot but not be saved.
    `answered` is the request whose answer the content ends with, if nothing was evaluated after
    it. `last_use` is a counter, 0 is never; `idle_since` is the time of the last release.
    `restored_tokens` were just restored from the file of an earlier daemon.

    `request_session` is the session of the request that has the `busy` slot, empty once it has
    ended; its content may not be in the slot yet. `has_first_token` says that the answer has begun.
    `tenants` are those of whose prompts the server may hold tokens in the slot: more than one while
    it is unknown whether a prompt has replaced that of another tenant.
    `background` is set during work that no caller waits for. `task` is work that runs to its end
    before the slot is released.
    """

    id: int
    content: Prompt = _EMPTY
    session_key: str = ""
    last_use: int = 0
    busy: bool = False
    request_session: str = ""
    has_first_token: bool = False
    unsaved: bool = False
    session_has_ended: bool = False
    answered: AnsweredRequest | None = None
    idle_since: float = 0.0
    restored_tokens: int = 0
    tenants: frozenset[str] = frozenset()
    task: asyncio.Task[object] | None = None
    background: asyncio.Event | None = None

    @property
    def is_worth_saving(self) -> bool:
        """Whether the slot has a session's content that is in no file and not too short."""
        is_unsaved = self.unsaved and bool(self.session_key)
        return is_unsaved and self.content.size >= MIN_REUSED_CHARACTERS

    def evaluation_started(self, session_key: str) -> None:
        """Records that a prompt is being evaluated, which may end anywhere in it."""
        self.answered = None
        if not session_key or session_key != self.session_key:
            self.content, self.session_key, self.unsaved = _EMPTY, session_key, False

    def set_content(
        self,
        content: Prompt,
        session_key: str,
        *,
        unsaved: bool = True,
        answered: AnsweredRequest | None = None,
    ) -> None:
        """Records what the slot begins with now."""
        self.content, self.session_key, self.unsaved = content, session_key, unsaved
        self.session_has_ended = False
        self.answered = answered

    def end_session(self, session_key: str) -> None:
        """Records that a session has ended: nothing in the slot belongs to it any more."""
        if self.request_session == session_key:
            self.request_session = ""
        if self.session_key == session_key:
            self.session_key, self.unsaved, self.session_has_ended = "", False, True
            self.answered = None

    def may_reuse(self, tenant: str) -> bool:
        """Whether the slot holds nothing of another tenant, which must not be reused."""
        return self.tenants <= {tenant}

    def clear(self) -> None:
        """Records that the slot is empty."""
        self.content, self.session_key, self.last_use, self.unsaved = _EMPTY, "", 0, False
        self.tenants = frozenset()

    @property
    def has_background_work(self) -> bool:
        """Whether work is done in the slot that runs to its end whoever is cancelled."""
        return self.background is not None or (self.task is not None and not self.task.done())

    async def wait_idle(self) -> None:
        """Returns when the background work in the slot has ended."""
        if self.background is not None:
            await self.background.wait()
        elif self.task is not None:
            await asyncio.wait([self.task])

    def run_to_end(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Starts work that goes on if the slot's holder is cancelled, and after which the slot is
        released. One at a time. The work should not raise; an error is logged."""
        self.task = asyncio.create_task(work)
        self.task.add_done_callback(_log_failure)
        return self.task


def _log_failure(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (failure := task.exception()):
        _log.error("the work in a slot failed", exc_info=failure)
