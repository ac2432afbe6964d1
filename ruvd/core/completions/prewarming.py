"""What the next turn is going to need, evaluated while the engine is idle.

A turn that trims its window begins with a prompt that the engine has not seen, and so does the
first turn of an import: whoever asks would wait for all of it. The rest of the time there is
nothing to do. A turn that comes meanwhile goes first; it waits for one step at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing

from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.errors import RuvdError
from ruvd.core.model import Message, Session
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine, EngineRequest, PrefixCache
from ruvd.core.ports.events import (
    CompletionEnded,
    Event,
    Observer,
    PromptEvaluated,
    PromptFoundEvaluated,
    SessionCreated,
    SessionCreationAborted,
    SessionGone,
)
from ruvd.core.sessions import window
from ruvd.core.sessions.registry import SessionRegistry

_log = logging.getLogger("ruvd.ahead")
# How many sessions may have something evaluated that no turn has used yet.
_MOST_REMEMBERED = 10_000


class Prewarmer:
    """Prepares sessions, one after the other, the longest waiting first. An Observer."""

    def __init__(
        self,
        sessions: SessionRegistry,
        engine: Engine,
        prefix_cache: PrefixCache,
        scheduler: SlotScheduler,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._sessions = sessions
        self._engine = engine
        self._prefix_cache = prefix_cache
        self._scheduler = scheduler
        self._clock = clock
        self._observer = observer
        self._waiting: dict[str, CompletionOptions] = {}
        self._more = asyncio.Event()
        self._at = ""  # the session that is being prepared, unless it has moved on
        self._evaluated: dict[str, list[tuple[float, int]]] = {}  # when, and how many tokens

    def turned(self, session: Session, options: CompletionOptions) -> None:
        """A turn of the session was committed; `options` are likely to be the next one's, too."""
        if session.id == self._at:
            self._at = ""
        limit = self._engine.window_tokens
        if not options.bypass_cache and window.is_trim_due(session, default_max_tokens=limit):
            self._waiting[session.id] = options
            self._more.set()

    def __call__(self, event: Event) -> None:
        """See what came of it, and which sessions are new."""
        match event:
            case SessionCreated(session_id):
                self._waiting.setdefault(session_id, CompletionOptions())
                self._more.set()
            case PromptEvaluated(tokens, _, session_id):
                evaluated = self._evaluated.setdefault(session_id, [])
                evaluated.append((self._clock.monotonic(), tokens))
                if len(self._evaluated) > _MOST_REMEMBERED:
                    del self._evaluated[next(iter(self._evaluated))]
            case CompletionEnded(session_id=session_id) if session_id not in ("", self._at):
                self._found(event)
            case SessionGone(session_id) | SessionCreationAborted(session_id):
                self._waiting.pop(session_id, None)
                self._evaluated.pop(session_id, None)
                if session_id == self._at:
                    self._at = ""

    def _found(self, event: CompletionEnded) -> None:
        """What the turn found of what was evaluated before its first token; the engine may be at
        the next turn's before this one is committed."""
        evaluated = self._evaluated.pop(event.session_id, [])
        began = self._clock.monotonic() - event.timings.total_seconds
        first = began + (event.timings.time_to_first_token_seconds or 0.0)
        if later := [each for each in evaluated if each[0] > first]:
            self._evaluated[event.session_id] = later
        tokens = sum(count for at, count in evaluated if at <= first)
        if tokens and event.usage and event.usage.cached_tokens:
            self._observer(PromptFoundEvaluated(min(tokens, event.usage.cached_tokens)))

    async def run(self) -> None:
        """Prepare what waits, for as long as this runs."""
        while True:
            await self._more.wait()
            while self._waiting:
                self._at = next(iter(self._waiting))
                options = self._waiting.pop(self._at)
                try:
                    await self._prepare(self._at, options)
                except RuvdError as error:
                    # If it is still so by then, the turn itself is going to say it.
                    _log.debug("not prepared: %s", error)
            self._more.clear()

    async def _prepare(self, session_id: str, options: CompletionOptions) -> None:
        await self._engine.ready()
        async with self._scheduler.take_spare():
            prompt = await self._prompt(session_id)
        if not prompt:
            return
        request, tokens = EngineRequest(prompt, options, session_id), 0
        async with aclosing(self._prefix_cache.prepare(request)) as steps:
            while True:
                async with self._scheduler.take_spare():
                    turn_request = self._sessions.turn_queue.turn_request(session_id)
                    if self._at != session_id or (turn_request and turn_request.completion_id):
                        return
                    step = await anext(steps, None)
                if step is None:
                    break
                self._observer(step)
                tokens += step.tokens
        _log.debug("evaluated ahead", extra={"session_id": session_id, "tokens": tokens})

    async def _prompt(self, session_id: str) -> Sequence[Message]:
        """What the next turn's prompt begins with, if the engine has not seen it; or nothing."""
        session = await self._sessions.current(session_id)
        if session is None or not session.exchange_count:
            return ()
        limit = self._engine.window_tokens
        if session.context_tokens and not window.is_trim_due(session, default_max_tokens=limit):
            return ()
        history = await self._sessions.window(session)
        return window.plan(session, history, (), default_max_tokens=limit).messages
