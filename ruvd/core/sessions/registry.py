"""Sessions as they are: who is alive, who has the turn, what is committed.

A session in use (its lane has someone running or waiting) is never expired or evicted. A session
that a completion creates is written with its first commit; until then its lane holds its place
and shows it. Expiry is strict at every access, whatever the sweeper has done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ruvd.core.errors import SessionNotFound, SessionsDisabled, SessionTooLarge
from ruvd.core.ids import unguessable
from ruvd.core.model import ContextWindow, IdempotencyRecord, Message, Session
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import Observer, SessionCreated, SessionCreationAborted, SessionGone
from ruvd.core.ports.store import Commit, Store, StoreCounts, TurnSnapshot
from ruvd.core.sessions.turn_queue import TurnQueue, TurnRequest, to_its_end


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """What a deployment decides about sessions."""

    enabled: bool = True
    idle_timeout_seconds: float = 1800.0
    max_sessions: int = 100
    max_queue: int = 100
    max_session_bytes: int = 16 << 20
    context_window: ContextWindow = ContextWindow()


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a client says of a session that is to be made; None is the daemon's default."""

    session_id: str = ""
    system_prompt: str = ""
    messages: Sequence[Message] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    context_window: ContextWindow | None = None
    idle_timeout_seconds: float | None = None
    model: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session as a reader sees it; `messages` only if asked for."""

    session: Session
    running_completion_id: str = ""
    in_use: bool = False
    messages: Sequence[Message] | None = None


class SessionRegistry:
    """All sessions of one store."""

    def __init__(
        self, store: Store, clock: Clock, observer: Observer, policy: SessionPolicy
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self.turn_queue = TurnQueue(policy.max_sessions, policy.max_queue)

    # --- reading ----------------------------------------------------------------------------

    async def get(self, session_id: str, *, with_messages: bool = False) -> SessionState:
        """The session, unless it has expired. A session that is being made has no messages."""
        self.check_enabled()
        turn_request = self.turn_queue.turn_request(session_id)
        messages: Sequence[Message] = ()
        session = turn_request.pending_session if turn_request else None
        if session is None:
            session = await self._store.get(session_id)
            if session is None or not self.active_or_in_turn(session, turn_request):
                raise session_not_found(session_id)
        if with_messages and session.message_count:
            exchanges = await self._store.exchanges(session_id, 0)
            messages = [message for exchange in exchanges for message in exchange]
            # A turn may have been committed between the two reads.
            session = replace(session, message_count=len(messages), exchange_count=len(exchanges))
        return self.state(session, messages if with_messages else None)

    async def list(
        self, *, after: int, limit: int, labels: Mapping[str, str]
    ) -> tuple[Sequence[SessionState], int]:
        """A page of the stored sessions, in the order of their creation; and the next cursor."""
        self.check_enabled()
        page, cursor = await self._store.list(
            after=after,
            limit=limit,
            labels=labels,
            now=self._clock.now(),
            active_or_in_turn=self.turn_queue.begun(),
        )
        return [self.state(session) for session in page], cursor

    async def counts(self) -> StoreCounts:
        """How much there is in the store."""
        return await self._store.counts(self._clock.now(), self.turn_queue.begun())

    def state(self, session: Session, messages: Sequence[Message] | None = None) -> SessionState:
        """The session as a reader sees it now."""
        turn_request = self.turn_queue.turn_request(session.id)
        running = turn_request.completion_id if turn_request else ""
        if (
            turn_request
            and turn_request.began is not None
            and turn_request.began > session.last_used_time
        ):
            session = replace(
                session, last_used_time=turn_request.began
            )  # the store may learn it later
        return SessionState(session, running, turn_request is not None, messages)

    async def current(self, session_id: str) -> Session | None:
        """The session; None if there is none, or it has expired."""
        session = await self._store.get(session_id)
        return session if self.alive(session) else None

    async def existing(self, session_id: str) -> Session:
        """The session. Raises SessionNotFound if there is none, or it has expired."""
        session = await self.current(session_id)
        if session is None:
            raise session_not_found(session_id)
        return session

    def alive(self, session: Session | None) -> bool:
        """Whether there is such a session and it has not expired."""
        return session is not None and session.expire_time > self._clock.now()

    def active_or_in_turn(self, session: Session, turn_request: TurnRequest | None) -> bool:
        """Whether it is alive, or was when the turn began that `holder` has in it."""
        return self.alive(session) or (turn_request is not None and turn_request.began is not None)

    def prepare(self, new: NewSession) -> Session:
        """The session that `new` asks for, not stored yet; an id of ours is unguessable."""
        now = self._clock.now()
        idle = new.idle_timeout_seconds
        return Session(
            id=new.session_id or unguessable(),
            create_time=now,
            last_used_time=now,
            idle_timeout_seconds=self._policy.idle_timeout_seconds if idle is None else idle,
            system_prompt=new.system_prompt,
            model=new.model,
            labels=new.labels,
            context_window=new.context_window or self._policy.context_window,
        )

    # --- for completions --------------------------------------------------------------------

    async def begin_turn(
        self,
        session_id: str,
        turn_request: TurnRequest,
        system_prompt: str,
        *,
        request_id: str,
        require_existing: bool,
    ) -> TurnSnapshot:
        """What a turn begins with, with a session; a new one is put into `holder.newcomer`.

        The caller has the turn. Raises SessionNotFound with `require_existing`.
        """
        self.check_enabled()
        # What evicts the session may be on its way to the store since before this lane was taken;
        # this comes after it.
        now = self._clock.now()
        begun = await self._store.begin_turn(session_id, request_id, now)
        if begun.session is not None:
            turn_request.began = None if begun.idempotency_record else now
            return begun
        if require_existing:
            raise session_not_found(session_id)
        turn_request.pending_session = self.prepare(NewSession(session_id, system_prompt))
        return TurnSnapshot(turn_request.pending_session, exchanges=())

    def check_room(self, session: Session, messages: Sequence[Message]) -> None:
        """Raises SessionTooLarge if the messages do not fit into the session any more."""
        size = session.size_bytes + sum(message.size_bytes for message in messages)
        if size > self._policy.max_session_bytes:
            raise SessionTooLarge(
                f"the history would have {size} bytes, the limit is "
                f"{self._policy.max_session_bytes} (max_session_bytes); start a new session"
            )

    async def window(self, session: Session) -> Sequence[tuple[Message, ...]]:
        """The exchanges from the start of the session's context window on."""
        if not session.message_count:
            return ()
        return await self._store.exchanges(session.id, session.window_start)

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """What the session has committed under a request id; None if it has expired."""
        idempotency_record = await self._store.idempotency_record(session_id, request_id)
        return await self._if_active_or_in_turn(session_id, idempotency_record)

    async def completion(self, completion_id: str) -> IdempotencyRecord | None:
        """What a completion has committed; None if its session has expired."""
        found = await self._store.completion(completion_id)
        return await self._if_active_or_in_turn(*found) if found else None

    async def _if_active_or_in_turn(
        self, session_id: str, idempotency_record: IdempotencyRecord | None
    ) -> IdempotencyRecord | None:
        turn_request = self.turn_queue.turn_request(session_id)
        session = await self._store.get(session_id) if idempotency_record else None
        return (
            idempotency_record
            if session and self.active_or_in_turn(session, turn_request)
            else None
        )

    async def commit(self, commit: Commit, parent_id: str = "") -> None:
        """Write one change, evicting whom a newcomer displaces; with a parent it is a fork.

        A caller that is cancelled meanwhile leaves when the write has ended, not before: whoever
        has the session's turn next must see it.
        """
        await to_its_end(self.write(commit, parent_id))

    async def write(self, commit: Commit, parent_id: str = "") -> None:
        """As `commit`, for a caller that nobody cancels meanwhile: it costs no task."""
        if commit.create:
            commit = replace(
                commit,
                max_sessions=self._policy.max_sessions,
                protected=(*self.turn_queue.in_use(), parent_id),
                now=self._clock.now(),
            )
        if parent_id:
            evicted = await self._store.fork(commit, parent_id)
        else:
            evicted = await self._store.commit(commit)
        for session_id in evicted:
            self._observer(SessionGone(session_id, "capacity"))
        if commit.create:
            self._observer(SessionCreated(commit.session.id))

    async def touch(self, session_id: str) -> None:
        """Note that a turn ended in the session without a commit."""
        await self._store.touch(session_id, self._clock.now())

    def creation_aborted(self, session_id: str) -> None:
        """The turn that was to make the session ended without a commit."""
        self._observer(SessionCreationAborted(session_id))

    def check_enabled(self) -> None:
        """Raises SessionsDisabled where this daemon keeps none."""
        if not self._policy.enabled:
            raise SessionsDisabled(
                "this daemon keeps no sessions (sessions_enabled is false); "
                "send the whole conversation without a session_id"
            )


def with_messages(
    session: Session, numbered: Sequence[tuple[int, Message]], **changes: Any
) -> Session:
    """The session with these messages at its end, and other changes."""
    return replace(
        session,
        message_count=session.message_count + len(numbered),
        exchange_count=numbered[-1][0] + 1 if numbered else session.exchange_count,
        size_bytes=session.size_bytes + sum(message.size_bytes for _, message in numbered),
        **changes,
    )


def session_not_found(session_id: str) -> SessionNotFound:
    """The error for a session that there is not."""
    return SessionNotFound(f"there is no session {session_id!r}, or it has expired")
