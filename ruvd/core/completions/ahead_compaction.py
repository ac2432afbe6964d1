"""Makes summaries between turns, while the engine is idle, so that no caller waits for one.

A summary is due at a share of the window's limits. First the engine is asked for it, with one
message after the prompt of the last turn. Then the new prompt is evaluated under another key than
the session's, so that a turn that comes meanwhile finds the old one. Only then is the summary
stored: at once, unless a turn runs, and without the evaluation if the next turn would trim.

A caller always goes first. An interrupted summary is gone on with where it was, as long as its
prompt is the same and the engine can continue an answer; otherwise it is asked for again. A summary
that is written is kept until it is stored, and so is what is evaluated.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from ruvd.core.completions.compaction_budget import CompactionBudget
from ruvd.core.completions.compactor import Compactor, WrittenSummary, tokens_of
from ruvd.core.completions.last_options import LastOptions
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.completions.scheduler import SlotScheduler
from ruvd.core.completions.summary_writer import SummaryWriter
from ruvd.core.errors import QuotaExceeded, RuvdError, SessionBusy
from ruvd.core.model import IfBusy, Message, Session
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineRequest, PrefixCache
from ruvd.core.ports.events import (
    CompactionGivenUp,
    CompletionCommitted,
    CompletionEnded,
    Event,
    Observer,
    PromptEvaluated,
    SessionCompacted,
    SessionCreated,
    SessionGone,
)
from ruvd.core.sessions import compaction, window
from ruvd.core.sessions.compaction import CompactionPlan
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenants import tenant_of

_log = logging.getLogger("ruvd.compaction")
# The sessions whose last summary failed, which wait longer after each failure.
_MAX_FAILED_SESSIONS = 1000
_MAX_WAIT_EXCHANGES = 64


@dataclass(frozen=True, slots=True)
class _Written:
    """A summary that is not stored yet."""

    base: Session
    plan: CompactionPlan
    summary: WrittenSummary
    options: CompletionOptions


class AheadCompaction:
    """Makes the summaries that are due, one after the other, the longest waiting first.

    An Observer. `prefix_cache` is that of the default engine, None if its content is not worth
    preparing.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        compactor: Compactor,
        completions: CompletionRegistry,
        prefix_cache: PrefixCache | None,
        last_options: LastOptions,
        observer: Observer,
        budget: CompactionBudget,
        writer: SummaryWriter,
    ) -> None:
        self._writer = writer
        self._budget = budget
        self._sessions = sessions
        self._compactor = compactor
        self._completions = completions
        self._engines = completions.engines
        self._prefix_cache = prefix_cache
        self._last_options = last_options
        self._observer = observer
        self._waiting: dict[str, None] = {}
        self._has_waiting = asyncio.Event()
        self._written: dict[str, _Written] = {}
        # By session: the failures, and the number of exchanges at which the next try is made.
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Queues sessions whose summary is due, and hands over what was evaluated for them."""
        match event:
            case CompletionCommitted(session, options):
                if not options.bypass_cache and self.takes(session):
                    self._queue(session.id)
            case CompletionEnded(session_id=session_id) if session_id in self._written:
                self._queue(session_id)  # a turn had it when the summary was to be stored
            case SessionCreated(session_id, session):
                if session is not None and self.takes(session):
                    self._queue(session_id)  # it has come with a long history
            case SessionCompacted(session):
                self._written.pop(session.id, None)
                if self._prefix_cache:
                    self._prefix_cache.adopt(session.id, _prepared_key(session.id))
            case SessionGone(session_id):
                self._waiting.pop(session_id, None)
                self._written.pop(session_id, None)
                self._writer.forget(session_id)
                self._failed.pop(session_id, None)
                if self._prefix_cache:
                    self._prefix_cache.forget(_prepared_key(session_id))

    def takes(self, session: Session) -> bool:
        """Whether a summary of the session will be made before its next turn, if there is time."""
        _, earliest = self._failed.get(session.id, (0, 0))
        if session.exchange_count < earliest:
            return False
        return self._compactor.is_due(session, self._last_options.get(session.id))

    def _queue(self, session_id: str) -> None:
        self._waiting[session_id] = None
        self._has_waiting.set()

    async def run(self) -> None:
        """Makes the summaries of the waiting sessions, until it is cancelled."""
        while True:
            await self._has_waiting.wait()
            while self._waiting:
                session_id = next(iter(self._waiting))
                del self._waiting[session_id]
                try:
                    await self._compact(session_id)
                except SessionBusy:
                    # Its turn queues it again, if the summary is still due then.
                    _log.debug("a turn came before the summary", extra={"session_id": session_id})
                except RuvdError as error:
                    await self._give_up(session_id, error)
            self._has_waiting.clear()

    async def _compact(self, session_id: str) -> None:
        session = await self._sessions.current(session_id)
        if session is None or not self.takes(session):
            return
        written = self._written.get(session_id)
        if written is None or not _is_still_of(written, session):
            self._written.pop(session_id, None)
            written = await self._write(session)
            if written is None:
                return
            self._written[session_id] = written
        await self._prepare(written)
        await self._compactor.store(
            written.base, written.plan, written.summary, written.options, IfBusy.REJECT
        )
        self._failed.pop(session_id, None)
        _log.info(
            "conversation summarised",
            extra={"session_id": session_id, "exchanges": written.plan.covers},
        )
        self._queue(session_id)  # more may be left of a long history

    async def _write(self, session: Session) -> _Written | None:
        """Returns a new summary, or None if none is due any more. Makes way for callers."""
        session_id, tenant = session.id, tenant_of(session.id)
        while True:
            options = self._last_options.get(session_id)
            chosen = self._engines.of(self._compactor.model(session, options))
            await chosen.engine.ready()
            async with self._writer.slot(chosen, tenant):
                if not chosen.engine.is_ready:
                    continue  # it went down, or was replaced, meanwhile
                source = await self._compactor.read(session_id)
                if not self.takes(source.session):
                    return None
                plan = self._compactor.plan(source, options, is_asked_for=False)
                if plan is None:
                    return None
                if self._writer.is_elsewhere(chosen):
                    self._budget.check(session_id)
                if self._completions.quotas.is_used_up(tenant):
                    raise QuotaExceeded("the tenant has used its tokens", quota="tokens_per_minute")
                request = self._compactor.request(source.session, plan, options, background=True)
                summary = await self._writer.write(session_id, request, chosen)
            if summary is None:
                continue
            if self._writer.is_elsewhere(chosen):
                self._budget.spend(session_id, tokens_of(summary))
            self._completions.quotas.charge(tenant, partial(tokens_of, summary))
            # The prompt is no longer needed.
            return _Written(source.session, replace(plan, messages=()), summary, options)

    async def _prepare(self, written: _Written) -> None:
        """Evaluates the prompt that the session will have, and returns when that is done.

        Returns at once if the next turn would trim. Then any summary is better than none.
        """
        session_id, options = written.base.id, written.options
        chosen = self._engines.of(options.model or written.base.model)
        cache = self._prefix_cache if chosen.is_default else chosen.engine.prefix_cache
        if cache is None or options.bypass_cache:
            return
        while True:
            session = await self._sessions.existing(session_id)
            limit = chosen.engine.window_tokens
            if window.is_trim_due(session, default_max_tokens=limit):
                return
            request = EngineRequest(
                await self._prompt(session, written, limit),
                options.for_model(session.model),
                _prepared_key(session_id),
                tenant=tenant_of(session_id),
                background=True,
            )
            steps = cache.prepare(request)
            if await self._evaluate(steps, chosen.scheduler, session):
                return

    async def _evaluate(
        self,
        prepared: AsyncGenerator[PromptEvaluated, None],
        scheduler: SlotScheduler,
        session: Session,
    ) -> bool:
        """Evaluates a prompt in steps; returns False if a turn has made it longer meanwhile."""
        async with aclosing(prepared) as steps:
            while True:
                async with scheduler.take_spare():
                    current = await self._sessions.existing(session.id)
                    if current.message_count != session.message_count:
                        return False
                    step = await anext(steps, None)
                if step is None:
                    return True
                self._observer(replace(step, session_key=session.id))

    async def _prompt(
        self, session: Session, written: _Written, limit: int | None
    ) -> Sequence[Message]:
        after = compaction.apply(session, written.plan, written.summary.text)
        history = await self._sessions.window(after)
        pinned = await self._sessions.reads.pinned(after)
        return window.plan(after, history, (), default_max_tokens=limit, pinned=pinned).messages

    async def _give_up(self, session_id: str, error: RuvdError) -> None:
        """Leaves the session to the trim, for twice as many exchanges after each failure."""
        session = await self._sessions.current(session_id)
        self._writer.forget(session_id)
        if session is None:
            return
        failures = self._failed.pop(session_id, (0, 0))[0] + 1
        wait = min(2**failures, _MAX_WAIT_EXCHANGES)
        self._failed[session_id] = failures, session.exchange_count + wait
        if len(self._failed) > _MAX_FAILED_SESSIONS:
            self._failed.popitem(last=False)
        _log.warning(
            "a conversation was not summarised",
            extra={"session_id": session_id, "reason": error.reason(), "detail": str(error)},
        )
        self._observer(CompactionGivenUp(session_id, error.reason()))


def _prepared_key(session_id: str) -> str:
    """Returns the key under which the next prompt of a session is evaluated. No session has it."""
    return f"{session_id}+compacted"


def _is_still_of(written: _Written, session: Session) -> bool:
    base = written.base
    return (base.compactions, base.create_time) == (session.compactions, session.create_time)
