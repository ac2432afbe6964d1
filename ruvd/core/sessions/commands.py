"""Changes of sessions: clients create, fork, update, append and end; time expires them.

Each change takes the session's turn, as completions do, and is one commit.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ruvd.core import tenants
from ruvd.core.errors import (
    DataCorrupted,
    FieldViolation,
    InvalidRequest,
    SessionBusy,
    SessionEnded,
    SessionExists,
)
from ruvd.core.ids import unguessable
from ruvd.core.model import (
    ContextWindow,
    Exchange,
    IdempotencyRecord,
    IfBusy,
    Message,
    Session,
    Usage,
)
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import Observer, SessionGone
from ruvd.core.ports.store import Commit, Store
from ruvd.core.sessions import (
    compaction,
    idempotency,
    pins,
    shared_store,
    window,
    window_start,
)
from ruvd.core.sessions.absence import session_not_found
from ruvd.core.sessions.model import (
    NewMessages,
    NewSession,
    SessionPolicy,
    SessionState,
    with_messages,
)
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.tool_results import check_results
from ruvd.core.sessions.turn_queue import TurnQueue, TurnRequest, finish_despite_cancel


@dataclass(frozen=True, slots=True)
class SessionChanges:
    """A client's changes of a session; a field that is None stays as it is."""

    labels: Mapping[str, str] | None = None
    idle_timeout_seconds: float | None = None
    context_window: ContextWindow | None = None
    compaction_instruction: str | None = None


@dataclass(frozen=True, slots=True)
class NewFork:
    """A client's request for a fork; `exchange_count` None keeps all exchanges."""

    parent_id: str
    exchange_count: int | None = None
    session_id: str = ""
    request_id: str = ""


class SessionCommands:
    """Changes sessions, one commit a change."""

    def __init__(
        self,
        sessions: SessionRegistry,
        store: Store,
        clock: Clock,
        observer: Observer,
        policy: SessionPolicy,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._clock = clock
        self._observer = observer
        # One queue per request id, so that two calls with the same id create one session.
        self._creating = TurnQueue(policy.max_sessions, policy.max_queue)

    async def create(self, new: NewSession) -> SessionState:
        """Creates a session with the history that comes with it, once per request id."""
        self._sessions.check_enabled()
        check_results((), new.messages)
        asked = (new.session_id, new.system_prompt, new.messages, new.labels, new.context_window)
        more = idempotency.given(
            new.compaction_instruction, new.summary, new.summary_exchange_count
        )
        digest = idempotency.digest("create", *asked, new.idle_timeout_seconds, new.model, *more)

        async def make(record: IdempotencyRecord | None) -> Session:
            session = self._sessions.prepare(new)
            self._sessions.quotas.check_size(session, new.messages)
            pins.check_pinned(session, (), new.messages)
            numbered = window.number(0, new.messages)
            session = with_messages(session, numbered)
            if new.summary:
                session = compaction.adopt(
                    session,
                    window.grouped(numbered),
                    position=0,
                    text=new.summary,
                    exchange_count=new.summary_exchange_count,
                )
            await self._make(Commit(session, numbered, record, create=True, refusable=True))
            return session

        return await self._once(new.request_id, digest, make)

    async def fork(self, new: NewFork) -> SessionState:
        """Creates a session that shares the beginning of another's committed history."""
        self._sessions.check_enabled()
        digest = idempotency.digest("fork", new.parent_id, new.exchange_count, new.session_id)

        async def make(record: IdempotencyRecord | None) -> Session:
            running = self._sessions.turn_queue.running(new.parent_id)
            parent = await self._store.get(new.parent_id)
            if parent is None or not self._sessions.active_or_in_turn(parent, running):
                raise await self._sessions.absence(new.parent_id)
            keep = parent.exchange_count if new.exchange_count is None else new.exchange_count
            if keep > parent.exchange_count:
                text = f"the session has {parent.exchange_count} exchanges"
                raise InvalidRequest([FieldViolation("exchange_count", text)])
            messages, size = await self._store.size_at(parent.id, keep)
            now = self._clock.now()
            whole = keep == parent.exchange_count
            session = replace(
                parent,
                id=new.session_id or tenants.scoped(tenants.tenant_of(parent.id), unguessable()),
                create_time=now,
                last_used_time=now,
                parent_id=parent.id,
                message_count=messages,
                exchange_count=keep,
                size_bytes=size,
                usage=Usage(),
                context_tokens=parent.context_tokens if whole else None,
            )
            session = compaction.in_fork(session, keep, window_start.in_fork(parent, keep))
            await self._make(Commit(session, (), record, create=True, refusable=True), parent.id)
            return session

        return await self._once(new.request_id, digest, make)

    async def _once(
        self,
        request_id: str,
        digest: bytes,
        make: Callable[[IdempotencyRecord | None], Awaitable[Session]],
    ) -> SessionState:
        """Creates a session, or returns the one that this request id has created."""

        async def once() -> Session:
            made = await self._store.created_by(request_id)
            running = self._sessions.turn_queue.running(made[0]) if made else None
            session = await self._store.get(made[0]) if made else None
            if made and session and self._sessions.active_or_in_turn(session, running):
                idempotency.check(made[1].digest, digest, request_id)
                return session
            return await make(IdempotencyRecord(request_id, digest))

        if not request_id:
            return self._sessions.state(await shared_store.repeated(lambda: make(None)))
        async with self._creating.turn(request_id, TurnRequest()):
            return self._sessions.state(await shared_store.repeated(once))

    async def _make(self, commit: Commit, parent_id: str = "") -> None:
        session = commit.session
        try:
            turn_request = TurnRequest(pending_session=session)
            async with self._sessions.turn_queue.turn(session.id, turn_request, IfBusy.REJECT):
                await self._sessions.quotas.check_place_without_turn(session.id)
                await self._sessions.commit(commit, parent_id)
        except SessionBusy:
            raise SessionExists(
                f"session {tenants.own(session.id)!r} is being created or used"
            ) from None

    async def update(
        self, session_id: str, changes: SessionChanges, *, may_move: bool = False
    ) -> SessionState:
        """Changes a session, after the turns that came before.

        With `may_move`, here and in `add`, raises SessionElsewhere while another replica that
        can be called has the session.
        """
        self._sessions.check_enabled()

        async def change() -> Session:
            session = await self._sessions.existing(session_id)
            given = {name: getattr(changes, name) for name in SessionChanges.__slots__}
            before = session
            start = window_start.after_update(session, changes.context_window)
            session = replace(session, **{k: v for k, v in given.items() if v is not None})
            session = replace(session, window_start=start)
            if changes.context_window:
                session = replace(
                    session, pinned=await self._sessions.reads.pinned_after(session, before)
                )
            await self._sessions.commit(Commit(session))
            return session

        async with self._sessions.turn_queue.turn(session_id, TurnRequest()):
            session = await shared_store.repeated(change, may_move=may_move)
        return self._sessions.state(session)

    async def append(
        self,
        session_id: str,
        messages: Sequence[Message],
        request_id: str = "",
    ) -> SessionState:
        """Commits messages without generating, after earlier turns, once per request id."""
        return await self.add(session_id, NewMessages(messages, request_id))

    async def add(
        self, session_id: str, new: NewMessages, *, may_move: bool = False
    ) -> SessionState:
        """Commits messages, and a summary that the client has made, as `append` does."""
        self._sessions.check_enabled()
        messages, request_id = new.messages, new.request_id
        more = idempotency.given(new.summary, new.summary_exchange_count)
        digest = idempotency.digest("append", messages, *more)

        async def change() -> Session:
            session = await self._sessions.existing(session_id)
            record = None
            if request_id:
                known = await self._store.idempotency_record(session_id, request_id)
                if known:
                    idempotency.check(known.digest, digest, request_id)
                    return session
                record = IdempotencyRecord(request_id, digest)
            self._sessions.quotas.check_size(session, messages)
            last = await self._store.exchanges(session_id, max(0, session.exchange_count - 1))
            check_results(last[-1] if last else (), messages)
            numbered = window.number(session.exchange_count, messages)
            history: Sequence[Exchange] = ()
            if new.summary or any(message.pinned for message in messages):
                history = await self._sessions.window(session)
                pins.check_pinned(session, history, messages)
            position = session.message_count - sum(map(len, history))
            session = with_messages(session, numbered, last_used_time=self._clock.now())
            if new.summary:
                session = compaction.adopt(
                    session,
                    window.joined(history, session.window_start, numbered),
                    position=position,
                    text=new.summary,
                    exchange_count=new.summary_exchange_count,
                )
            await self._sessions.commit(Commit(session, numbered, record, refusable=True))
            return session

        async with self._sessions.turn_queue.turn(session_id, TurnRequest()):
            session = await shared_store.repeated(change, may_move=may_move)
        return self._sessions.state(session)

    async def end(self, session_id: str, *, allow_missing: bool = False) -> None:
        """Deletes a session. Its running and waiting requests fail with SessionEnded.

        Raises SessionNotFound unless `allow_missing`.
        """
        self._sessions.check_enabled()
        turn_queue = self._sessions.turn_queue
        running = turn_queue.running(session_id)
        is_pending = running is not None and running.pending_session is not None
        turn_queue.cancel(
            session_id, SessionEnded(f"session {tenants.own(session_id)!r} was ended")
        )
        async with turn_queue.turn(session_id, TurnRequest(ends=True)):
            existed = is_pending or await self._exists(session_id)
            await finish_despite_cancel(self._delete(session_id))
            if not existed and not allow_missing:
                raise session_not_found(session_id)

    async def _exists(self, session_id: str) -> bool:
        try:
            return self._sessions.alive(await self._store.get(session_id))
        except DataCorrupted:  # observed; a damaged session can still be deleted
            return True

    async def _delete(self, session_id: str) -> None:
        if await self._store.end(session_id):
            self._observer(SessionGone(session_id, "client"))

    async def sweep(self) -> int:
        """Deletes the expired sessions and returns their number."""
        return await self._sessions.expiry.sweep()
