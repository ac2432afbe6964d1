"""Evaluates the prompt of a session's next turn while the engine is idle.

A turn that trims its window begins with a prompt that the engine has not seen, and so does the
first turn of an imported session, or after a summary. Without prewarming its caller would wait for
all of the prompt to be evaluated. Other turns need no prewarming. A turn that arrives meanwhile
goes first; it waits for at most one step.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing

from ruvd.core.completions.engines import ChosenEngine, Engines
from ruvd.core.errors import RuvdError
from ruvd.core.model import Message, Session
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import EngineRequest, PrefixCache
from ruvd.core.ports.events import (
    CompactionGivenUp,
    CompletionCommitted,
    CompletionEnded,
    Event,
    Observer,
    PromptEvaluated,
    PromptFoundEvaluated,
    SessionCompacted,
    SessionCreated,
    SessionCreationAborted,
    SessionGone,
)
from ruvd.core.sessions import window
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenants import tenant_of

_log = logging.getLogger("ruvd.ahead")
# The number of sessions with an evaluated prompt that no turn has used yet.
_MAX_EVALUATED_SESSIONS = 10_000


class Prewarmer:
    """Prewarms sessions one after the other, the longest waiting first. An Observer."""

    def __init__(
        self,
        sessions: SessionRegistry,
        engines: Engines,
        prefix_cache: PrefixCache,
        clock: Clock,
        observer: Observer,
        is_compacted: Callable[[Session], bool] = lambda _session: False,
    ) -> None:
        self._is_compacted = is_compacted
        self._sessions = sessions
        self._engines = engines
        self._prefix_cache = prefix_cache
        self._clock = clock
        self._observer = observer
        self._waiting: dict[str, CompletionOptions] = {}
        self._has_waiting = asyncio.Event()
        self._current = ""  # the session that is being prewarmed, unless a turn made it useless
        # By session: the times and numbers of tokens of the evaluated steps.
        self._evaluated: dict[str, list[tuple[float, int]]] = {}

    def __call__(self, event: Event) -> None:
        """Queues sessions whose next turn needs it, and reports what turns found evaluated."""
        match event:
            case CompletionCommitted(session, options):
                self._queue_if_trim_due(session, options)
            case SessionCompacted(session, options) if not options.bypass_cache:
                self._queue(session.id, options.for_model(session.model))
            case CompactionGivenUp(session_id):
                self._queue(session_id, CompletionOptions())
            case SessionCreated(session_id, session):
                model = session.model if session else ""
                self._waiting.setdefault(session_id, CompletionOptions(model))
                self._has_waiting.set()
            case PromptEvaluated(tokens, _, session_id):
                evaluated = self._evaluated.setdefault(session_id, [])
                evaluated.append((self._clock.monotonic(), tokens))
                if len(self._evaluated) > _MAX_EVALUATED_SESSIONS:
                    del self._evaluated[next(iter(self._evaluated))]
            case CompletionEnded(session_id=session_id) if session_id not in ("", self._current):
                self._report_found(event)
            case SessionGone(session_id) | SessionCreationAborted(session_id):
                self._waiting.pop(session_id, None)
                self._evaluated.pop(session_id, None)
                if session_id == self._current:
                    self._current = ""

    def _queue_if_trim_due(self, session: Session, options: CompletionOptions) -> None:
        if session.id == self._current:
            self._current = ""
        limit = self._engines.of(options.model or session.model).engine.window_tokens
        if options.bypass_cache or self._is_compacted(session):
            return  # the summary comes first, and needs the prompt that is evaluated
        if window.is_trim_due(session, default_max_tokens=limit):
            self._queue(session.id, options.for_model(session.model))

    def _queue(self, session_id: str, options: CompletionOptions) -> None:
        if session_id == self._current:
            self._current = ""
        self._waiting[session_id] = options
        self._has_waiting.set()

    def _report_found(self, event: CompletionEnded) -> None:
        """Reports how many of the tokens evaluated before the turn's first token were cached.

        The engine may have begun to evaluate for the next turn before this one was committed.
        """
        evaluated = self._evaluated.pop(event.session_id, [])
        began = self._clock.monotonic() - event.timings.total_seconds
        first = began + (event.timings.time_to_first_token_seconds or 0.0)
        if later := [step for step in evaluated if step[0] > first]:
            self._evaluated[event.session_id] = later
        tokens = sum(count for at, count in evaluated if at <= first)
        if tokens and event.usage and event.usage.cached_tokens:
            self._observer(PromptFoundEvaluated(min(tokens, event.usage.cached_tokens)))

    async def run(self) -> None:
        """Prewarms the waiting sessions, until it is cancelled."""
        while True:
            await self._has_waiting.wait()
            while self._waiting:
                self._current = next(iter(self._waiting))
                options = self._waiting.pop(self._current)
                try:
                    await self._prewarm(self._current, options)
                except RuvdError as error:
                    # If the cause persists, the turn itself is going to report it.
                    _log.debug("not prewarmed: %s", error)
            self._has_waiting.clear()

    async def _prewarm(self, session_id: str, options: CompletionOptions) -> None:
        chosen = self._engines.of(options.model)
        engine, scheduler, is_default = chosen
        cache = self._prefix_cache if is_default else engine.prefix_cache
        if cache is None:
            return
        await engine.ready()
        async with scheduler.take_spare():
            prompt = await self._prompt(session_id, options, chosen)
        if not prompt:
            return
        tenant = tenant_of(session_id)
        request, tokens = EngineRequest(prompt, options, session_id, tenant=tenant), 0
        async with aclosing(cache.prepare(request)) as steps:
            while True:
                async with scheduler.take_spare():
                    running = self._sessions.turn_queue.running(session_id)
                    if self._current != session_id or (running and running.completion_id):
                        return
                    step = await anext(steps, None)
                if step is None:
                    break
                self._observer(step)
                tokens += step.tokens
        _log.debug("evaluated ahead", extra={"session_id": session_id, "tokens": tokens})

    async def _prompt(
        self, session_id: str, options: CompletionOptions, chosen: ChosenEngine
    ) -> Sequence[Message]:
        """Returns the beginning of the next turn's prompt, or nothing if the engine has seen it."""
        session = await self._sessions.current(session_id)
        if session is None or not session.exchange_count:
            return ()
        if self._engines.of(options.model or session.model).engine is not chosen.engine:
            return ()  # nobody knew the session's model when it was queued
        limit = chosen.engine.window_tokens
        if session.context_tokens and not window.is_trim_due(session, default_max_tokens=limit):
            return ()
        history = await self._sessions.window(session)
        pinned = await self._sessions.reads.pinned(session)
        plan = window.plan(session, history, (), default_max_tokens=limit, pinned=pinned)
        return plan.messages
