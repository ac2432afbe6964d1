"""Makes the summaries of sessions: reads what they are made from, asks the engine, stores them.

No turn waits meanwhile. A summary is stored within the session's turn and, in a store that several
daemons share, with the fence of every write. It is stored only if no other one was since it was
begun; turns that were committed meanwhile are kept.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace

from ruvd.core import tenants
from ruvd.core.completions import allowances
from ruvd.core.errors import EngineUnavailable, SessionBusy
from ruvd.core.model import IfBusy, Message, Role, Session, Usage
from ruvd.core.options import CompletionOptions, ToolChoiceMode
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine, EngineDone, EngineRequest, EngineText
from ruvd.core.ports.events import Observer, SessionCompacted, SummaryRequested
from ruvd.core.ports.replicas import SessionChanged, SessionElsewhere
from ruvd.core.ports.store import Commit
from ruvd.core.sessions import compaction, shared_store
from ruvd.core.sessions.compaction import CompactionPlan
from ruvd.core.sessions.history import HistorySource
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.turn_queue import TurnRequest
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.core.values import value

_DEFAULT = CompletionOptions()


@value(frozen=True, slots=True)
class CompactionPolicy:
    """The settings of a deployment that concern summaries.

    `summary_tokens` is the length of a summary that the default engine writes, and
    `named_engine_tokens` of one that another engine writes. `model` is the name of the model that
    writes them, empty for the session's own.
    """

    summary_tokens: int = 64
    model: str = ""
    named_engine_tokens: int = 256


@value(frozen=True, slots=True)
class WrittenSummary:
    """A summary as the engine wrote it, with the engine's token counts."""

    text: str
    usage: Usage | None = None
    prefill_seconds: float | None = None


class Compactor:
    """The steps of a compaction, which its callers take one after the other."""

    def __init__(
        self,
        sessions: SessionRegistry,
        engine: Engine,
        clock: Clock,
        observer: Observer,
        policy: CompactionPolicy,
        limits_of: LimitsOf = unlimited,
    ) -> None:
        self._sessions = sessions
        self._engine = engine
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self._limits_of = limits_of

    async def read(self, session_id: str) -> HistorySource:
        """Returns what the session's next summary is made from. Raises as the registry does."""
        return await self._sessions.reads.source(await self._sessions.existing(session_id))

    def model(self, session: Session, options: CompletionOptions) -> str:
        """Returns the model that writes the session's summaries, empty for the default one."""
        return self._policy.model or options.model or session.model

    def plan(
        self, source: HistorySource, options: CompletionOptions = _DEFAULT, *, is_asked_for: bool
    ) -> CompactionPlan | None:
        """Plans the next summary of a session with these `options`; see `compaction.plan`.

        Its source fits the engine of the session and the one that writes the summary.
        """
        session = source.session
        model = self.model(session, options)
        engines = [self._engine.for_model(each) for each in (options.model or session.model, model)]
        limits = [engine.window_tokens for engine in engines if engine.window_tokens is not None]
        return compaction.plan(
            session,
            source.exchanges,
            source.pinned,
            position=source.position,
            default_max_tokens=min(limits, default=None),
            summary_tokens=self._summary_tokens(model),
            is_asked_for=is_asked_for,
        )

    def is_due(self, session: Session, options: CompletionOptions = _DEFAULT) -> bool:
        """Whether the session's next summary is to be made before a turn with these `options`."""
        engine = self._engine.for_model(options.model or session.model)
        return compaction.is_due(session, default_max_tokens=engine.window_tokens)

    def _summary_tokens(self, model: str) -> int:
        is_named = bool(self._engine.for_model(model).name)
        return self._policy.named_engine_tokens if is_named else self._policy.summary_tokens

    def request(
        self,
        session: Session,
        plan: CompactionPlan,
        options: CompletionOptions,
        *,
        background: bool = False,
    ) -> EngineRequest:
        """Returns the request for a summary, with the `options` of the last turn.

        Raises PermissionDenied for a model that the tenant may not use.
        """
        tenant = tenants.tenant_of(session.id)
        model = self.model(session, options)
        allowances.check_model(model or self._engine.model, self._limits_of(tenant))
        options = replace(
            options,
            model=model,
            max_tokens=self._summary_tokens(model),
            stop=(),
            # The tools stay in the prompt, so the cache still hits.
            tool_choice=ToolChoiceMode.NONE if options.tools else None,
            response_format=None,
            logit_bias={},
        )
        return EngineRequest(
            plan.messages, options, session.id, tenant=tenant, background=background
        )

    async def write(
        self, request: EngineRequest, *, ahead: bool = False, parts: list[str] | None = None
    ) -> WrittenSummary:
        """Returns the engine's summary. Raises as `Engine.generate` does. May be cancelled.

        `parts` are those that the engine has written before; they get what comes, also if that is
        interrupted. The engine must be one that continues an answer.
        """
        parts = [] if parts is None else parts
        if parts:
            left = max(1, (request.options.max_tokens or 0) - len(parts))
            request = replace(
                request,
                messages=(*request.messages, Message(Role.ASSISTANT, "".join(parts))),
                options=replace(request.options, max_tokens=left),
            )
        began, outcome, usage = self._clock.monotonic(), "failed", None
        try:
            written = await self._write(request, parts)
            outcome, usage = "written", written.usage
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        finally:
            seconds = self._clock.monotonic() - began
            key = request.session_key
            self._observer(SummaryRequested(key, outcome, ahead, seconds, usage))
        return written

    async def _write(self, request: EngineRequest, parts: list[str]) -> WrittenSummary:
        size, done = sum(map(len, parts)), None
        engine = self._engine.for_model(request.options.model)
        async with aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, EngineDone):
                    done = chunk
                elif isinstance(chunk, EngineText):
                    parts.append(chunk.text)
                    size += len(chunk.text.encode())
                    if size > compaction.MAX_SUMMARY_BYTES:
                        raise EngineUnavailable("the engine's summary is too long")
        text = "".join(parts).strip()
        if not text or done is None:
            raise EngineUnavailable("the engine gave no summary")
        return WrittenSummary(text, done.usage, done.prefill_seconds)

    async def store(
        self,
        base: Session,
        plan: CompactionPlan,
        written: WrittenSummary,
        options: CompletionOptions,
        if_busy: IfBusy,
    ) -> Session:
        """Stores a summary of the session `base`, and returns the session with it.

        Waits for the session's turns, here and at other replicas, if `if_busy` is QUEUE. Raises
        SessionBusy otherwise, and if the session has another summary by now.
        """
        session_id = base.id

        async def change() -> Session:
            session = await self._sessions.existing(session_id)
            if session.compactions != base.compactions or session.create_time != base.create_time:
                raise _changed(session_id)
            session = compaction.apply(session, plan, written.text)
            await self._sessions.commit(Commit(session))
            return session

        async with self._sessions.turn_queue.turn(session_id, TurnRequest(), if_busy):
            if if_busy is IfBusy.QUEUE:
                session = await shared_store.repeated(change)
            else:
                try:
                    session = await change()
                except (SessionElsewhere, SessionChanged):
                    raise _changed(session_id) from None
            # Within the turn, so that the next one finds what was prepared for it.
            self._observer(SessionCompacted(session, options))
        return session


def tokens_of(written: WrittenSummary) -> int:
    """Returns the tokens of a summary that count against a quota, 0 if they are unknown."""
    usage = written.usage or Usage()
    return usage.prompt_tokens - (usage.cached_tokens or 0) + usage.completion_tokens


def _changed(session_id: str) -> SessionBusy:
    return SessionBusy(
        f"the session {tenants.own(session_id)!r} was changed while its summary was made; the"
        " summary was dropped"
    )
