"""The sessions of one store: which are alive, which have a turn running, what is committed.

A session in use (it has a running or waiting turn) is never expired or evicted. A session that a
completion creates is written with its first commit; until then its place in the turn queue counts
as a session and shows as one. Expiry is strict at every access, whatever the sweeper has done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from ruvd.core import tenants
from ruvd.core.errors import RuvdError, SessionNotFound, StoreUnavailable
from ruvd.core.model import IdempotencyRecord, Message, Session
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import Observer, SessionCreated, SessionGone
from ruvd.core.ports.replicas import Replicas
from ruvd.core.ports.store import (
    Commit,
    Store,
    StoreCounts,
    TenantCounts,
)
from ruvd.core.sessions.absence import absence, check_absent, session_not_found
from ruvd.core.sessions.expiry import Expiry
from ruvd.core.sessions.history import HistoryReads
from ruvd.core.sessions.model import (
    HistoryPage,
    NewSession,
    SessionPolicy,
    SessionState,
    new_session,
)
from ruvd.core.sessions.quotas import SessionQuotas
from ruvd.core.sessions.turn_queue import TurnQueue, TurnRequest, finish_despite_cancel
from ruvd.core.sessions.turns import SessionTurns, sessions_disabled


class SessionRegistry:
    """The sessions of one store, and the rules of their lifetime."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        observer: Observer,
        policy: SessionPolicy,
        replicas: Replicas | None = None,
    ) -> None:
        """`replicas` are those that share the store, None if none do."""
        self._store = store
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self.turn_queue = TurnQueue(policy.max_sessions, policy.max_queue, policy.limits_of)
        self.reads = HistoryReads(store)
        if replicas:
            replicas.keep_while(self.turn_queue.is_awaited)
            self.turn_queue.on_unused = replicas.unused
        self.expiry = Expiry(store, clock, observer, self.turn_queue)
        self.quotas = SessionQuotas(store, self.turn_queue, policy, self.expiry, clock)
        self.turns = SessionTurns(
            store, clock, observer, policy, self.expiry, self.quotas, replicas
        )

    # --- reading ----------------------------------------------------------------------------

    async def get(self, session_id: str) -> SessionState:
        """Returns the session without its messages. One that is being created has none yet.

        Raises SessionNotFound if there is none, or it has expired.
        """
        self.check_enabled()
        running = self.turn_queue.running(session_id)
        session = running.pending_session if running else None
        if session is None:
            session = await self._store.get(session_id)
            if session is None or not self.active_or_in_turn(session, running):
                raise session_not_found(session_id)
        return self.state(session)

    async def history(self, session_id: str, page: HistoryPage | None = None) -> SessionState:
        """Returns the session with a page of its messages, by default from the first one on.

        The session and its messages are of the same instant. Raises SessionNotFound if there is no
        session, it has expired, or another session has got its id since the page before.
        """
        self.check_enabled()
        page = page or HistoryPage()
        running = self.turn_queue.running(session_id)
        session = running.pending_session if running else None
        messages: Sequence[Message] = ()
        if session is None:
            part = await self._store.messages(
                session_id, page.first, page.max_messages, page.max_bytes
            )
            if part is None or not self.active_or_in_turn(part.session, running):
                raise session_not_found(session_id)
            session, messages = part.session, part.messages
        name = tenants.own(session_id)
        if page.created not in (None, session.create_time):
            raise SessionNotFound(
                f"the session {name!r} of the page before has ended, and another session has"
                " its id; read that one from its first page"
            )
        if page.first > session.message_count or (
            not messages and page.first < session.message_count
        ):
            raise StoreUnavailable(
                f"the history of {name!r} has no message {page.first}, although the session"
                f" has {session.message_count}; read it from its first page"
            )
        return self.state(session, messages)

    async def list(
        self, *, after: int, limit: int, labels: Mapping[str, str], tenant: str = tenants.DEFAULT
    ) -> tuple[Sequence[SessionState], int]:
        """Returns a page of a tenant's sessions, in order of creation, and the next cursor."""
        self.check_enabled()
        page, cursor = await self._store.list(
            after=after,
            limit=limit,
            labels=labels,
            now=self._clock.now(),
            active_or_in_turn=self.turn_queue.begun(),
            tenant=tenant,
        )
        return [self.state(session) for session in page], cursor

    async def counts(self, tenant: str | None = None) -> StoreCounts:
        """Returns how many sessions and messages the store holds, of one tenant or of all."""
        return await self._store.counts(self._clock.now(), self.turn_queue.begun(), tenant)

    async def tenants(self, after: str, limit: int) -> Sequence[TenantCounts]:
        """Returns what the store holds of each tenant whose name follows `after`, up to `limit`."""
        return await self._store.tenants(self._clock.now(), after, limit, self.turn_queue.begun())

    def state(self, session: Session, messages: Sequence[Message] | None = None) -> SessionState:
        """Returns the session as clients see it now, with times of the wall clock."""
        running = self.turn_queue.running(session.id)
        completion_id = running.completion_id if running else ""
        created = session.create_time
        last_used_time, shift = session.last_used_time, self._clock.wall_shift()
        if running and running.began is not None and running.began > last_used_time:
            # The store may be told of the turn's begin only at the turn's end.
            last_used_time = running.began
        if shift or last_used_time != session.last_used_time:
            session = replace(
                session,
                create_time=session.create_time + shift,
                last_used_time=last_used_time + shift,
            )
        return SessionState(session, completion_id, running is not None, messages, created)

    async def current(self, session_id: str) -> Session | None:
        """Returns the session, or None if there is none or it has expired."""
        session = await self._store.get(session_id)
        return session if self.alive(session) else None

    async def existing(self, session_id: str) -> Session:
        """Returns the session. Raises SessionNotFound, SessionEvicted and SessionExpired."""
        session = await self.current(session_id)
        if session is None:
            raise await self.absence(session_id)
        return session

    async def absence(self, session_id: str) -> RuvdError:
        """Returns the error for a session that is not there: it is evicted, expired or unknown."""
        return absence(session_id, await self._store.gone(session_id, self._clock.now()))

    async def check_may_begin(
        self, session_id: str, *, require_existing: bool, recreate_if_gone: bool
    ) -> Session | None:
        """Returns the session in which a turn would begin now, or None if it would be a new one.

        Raises the errors of `begin_turn` for a session that is not there.
        """
        running = self.turn_queue.running(session_id)
        session = await self._store.get(session_id)
        if session is not None and self.active_or_in_turn(session, running):
            return session
        gone = await self._store.gone(session_id, self._clock.now())
        check_absent(
            session_id,
            gone,
            require_existing=require_existing,
            recreate_if_gone=recreate_if_gone,
        )
        return None

    def alive(self, session: Session | None) -> bool:
        """Whether the session exists and has not expired."""
        return session is not None and session.expire_time > self._clock.now()

    def active_or_in_turn(self, session: Session, running: TurnRequest | None) -> bool:
        """Whether the session is alive, or was alive when its running turn began."""
        return self.alive(session) or (running is not None and running.began is not None)

    def prepare(self, new: NewSession) -> Session:
        """Returns the session that `new` asks for. It is not stored; an id made here is random."""
        return new_session(new, self._policy, self._clock.now())

    # --- for completions --------------------------------------------------------------------

    async def window(self, session: Session) -> Sequence[tuple[Message, ...]]:
        """Returns the exchanges from the start of the session's context window on."""
        if not session.message_count:
            return ()
        return await self._store.exchanges(session.id, session.window_start)

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """Returns the record that the session committed under a request id.

        None if there is no such record, or the session has expired.
        """
        record = await self._store.idempotency_record(session_id, request_id)
        return await self._if_active_or_in_turn(session_id, record)

    async def completion(self, completion_id: str) -> IdempotencyRecord | None:
        """Returns the record that a completion committed, or None as `idempotency_record` does."""
        found = await self.completed_in(completion_id)
        return found[1] if found else None

    async def completed_in(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """Returns a committed completion's session and record, or None as `completion` does."""
        found = await self._store.completion(completion_id)
        return found if found and await self._if_active_or_in_turn(*found) else None

    async def _if_active_or_in_turn(
        self, session_id: str, record: IdempotencyRecord | None
    ) -> IdempotencyRecord | None:
        if record is None:
            return None
        running = self.turn_queue.running(session_id)
        session = await self._store.get(session_id)
        return record if session and self.active_or_in_turn(session, running) else None

    async def commit(self, commit: Commit, parent_id: str = "") -> None:
        """Writes one change and evicts sessions to make room for a new one.

        With a parent the change is a fork. A caller that is cancelled meanwhile returns only when
        the write has ended, because the session's next turn must see it.
        """
        await finish_despite_cancel(self.write(commit, parent_id))

    async def write(self, commit: Commit, parent_id: str = "") -> None:
        """Does the same as `commit` without a task, for a caller that cannot be cancelled."""
        commit = self.quotas.limited(commit, parent_id, self._clock.now())
        if parent_id:
            write = partial(self._store.fork, commit, parent_id)
        else:
            write = partial(self._store.commit, commit)
        removed = await (self.quotas.retried(write) if commit.refusable else write())
        for session in removed:
            reason = "idle" if session.expired else "capacity"
            self._observer(SessionGone(session.session_id, reason))
        if commit.create:
            self._observer(SessionCreated(commit.session.id, commit.session))

    async def touch(self, session_id: str) -> None:
        """Records that a turn ended in the session without a commit."""
        await self._store.touch(session_id, self._clock.now())

    def check_enabled(self) -> None:
        """Raises SessionsDisabled if this daemon keeps no sessions."""
        if not self._policy.enabled:
            raise sessions_disabled()
