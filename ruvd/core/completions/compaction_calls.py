"""The compactions that callers ask for."""

from ruvd.core import tenants
from ruvd.core.completions.compactor import Compactor, tokens_of
from ruvd.core.completions.last_options import LastOptions
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.model import IfBusy, Usage
from ruvd.core.ports.events import CompletionCommitted, Event, SessionGone
from ruvd.core.sessions import compaction, window
from ruvd.core.sessions.history import HistorySource
from ruvd.core.sessions.model import SessionState
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.values import value


@value(frozen=True, slots=True)
class CompactionOutcome:
    """The session after a compaction that was asked for, and what that did or would do.

    `summarized` exchanges are newly in the summary; with 0 there was nothing to do. `after_bytes`
    is None if no summary was made.
    """

    state: SessionState
    summarized: int
    kept: int
    before_bytes: int
    after_bytes: int | None = None
    usage: Usage | None = None


class CompactionCalls:
    """Makes summaries for callers, who wait for them. An Observer of the turns' options."""

    def __init__(
        self,
        sessions: SessionRegistry,
        compactor: Compactor,
        completions: CompletionRegistry,
    ) -> None:
        self._sessions = sessions
        self._compactor = compactor
        self._completions = completions
        self.last_options = LastOptions()

    def __call__(self, event: Event) -> None:
        """Keeps the options of turns."""
        match event:
            case CompletionCommitted(session, options):
                self.last_options.put(session.id, options)
            case SessionGone(session_id):
                self.last_options.drop(session_id)

    async def compact(self, session_id: str, *, dry_run: bool) -> CompactionOutcome:
        """Summarises a session, or only says what that would do.

        Raises the errors of a completion, and SessionBusy if the session has changed meanwhile.
        """
        self._sessions.check_enabled()
        source = await self._compactor.read(session_id)
        session = source.session
        options = self.last_options.get(session_id)
        plan = self._compactor.plan(source, options, is_asked_for=True)
        before = _prompt_bytes(source)
        if plan is None or dry_run:
            start = plan.start if plan else session.window_start
            return CompactionOutcome(
                self._sessions.state(session),
                plan.covers - compaction.covered(session) if plan else 0,
                session.exchange_count - start,
                before,
            )
        tenant = tenants.tenant_of(session_id)
        request = self._compactor.request(session, plan, options)
        with self._completions.other_work(tenant) as used:
            engine, scheduler, _ = self._completions.engines.of(request.options.model)
            await engine.ready()
            async with scheduler.take(tenant=tenant):
                written = await self._compactor.write(request)
            used["tokens"] = tokens_of(written)
        stored = await self._compactor.store(session, plan, written, options, IfBusy.QUEUE)
        after = await self._compactor.read(session_id)
        return CompactionOutcome(
            self._sessions.state(stored),
            plan.covers - compaction.covered(session),
            stored.exchange_count - stored.window_start,
            before,
            _prompt_bytes(after),
            written.usage,
        )


def _prompt_bytes(source: HistorySource) -> int:
    """Returns the bytes of a prompt of the session without new messages."""
    session = source.session
    first = compaction.source_start(session)
    exchanges = source.exchanges[session.window_start - first :]
    summary = session.summary if window.sends_summary(session, session.window_start) else None
    return window.size(window.render(session, exchanges, (), source.pinned, summary))
