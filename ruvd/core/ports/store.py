"""The contract that every session store fulfils, and the values that it takes and returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.values import value


@value(frozen=True, slots=True)
class Commit:
    """One atomic change of one session.

    `session` is the session's row after the change. `appended` holds the new messages in order,
    each with the number of its exchange; the first one is stored at the position
    `session.message_count - len(appended)`. `create` adds a new session instead of changing a
    stored one. The other fields are used with `create` only, see `Store.commit`.
    """

    session: Session
    appended: Sequence[tuple[int, Message]] = ()
    idempotency_record: IdempotencyRecord | None = None
    create: bool = False
    max_sessions: int | None = None
    protected: Collection[str] = ()
    now: float = 0.0


@value(frozen=True, slots=True)
class RemovedSession:
    """A session that a commit deleted: because it had `expired`, or else to hold `max_sessions`."""

    session_id: str
    expired: bool


@value(frozen=True, slots=True)
class StoreCounts:
    """The numbers of all stored sessions, of the active ones, and of the messages of all."""

    sessions: int
    active: int
    messages: int


@value(frozen=True, slots=True)
class TurnSnapshot:
    """The stored state that a turn begins with.

    `session` is None if the id is unknown, or if the session `has_expired` and is still stored.
    If `idempotency_record` is set, the request has been committed before and `exchanges` is None.
    Otherwise `exchanges` are those from `session.window_start` on, or None if they are too large
    to be read together with the session: then `Store.exchanges` returns them.
    """

    session: Session | None = None
    idempotency_record: IdempotencyRecord | None = None
    exchanges: Sequence[Exchange] | None = None
    has_expired: bool = False


class Store(Protocol):
    """A place where sessions are kept.

    Every method is atomic, may be called by many tasks of one event loop at once, and never blocks
    that loop. A write that has returned is durable and visible to every later read. A write that
    has raised changed nothing. A write whose caller was cancelled may or may not take effect. The
    caller makes the writes of one session one after the other.

    Every method but `close` raises StoreUnavailable while the store cannot be read or written, and
    works again once the cause is gone. Unless their description mentions expiry, methods treat an
    expired session like any other. Each session that the store deletes is returned by the call
    that deleted it, exactly once; nothing else deletes a session.
    """

    async def open(self) -> None:
        """Opens the store, creating it if it is missing.

        Raises StoreLocked if another process has it open.
        """

    async def close(self) -> None:
        """Completes the writes that have begun, then closes the store. Idempotent."""

    async def get(self, session_id: str) -> Session | None:
        """Returns the session without its messages, or None if the id is unknown.

        Costs O(log n) in the number of sessions and O(1) in the number of its messages.
        """

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """Returns the exchanges from number `first` on, in order.

        The cost depends on what is returned, not on the length of the history before it. Returns
        nothing for an unknown session.
        """

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """Returns the state that a turn at `now` begins with, after all writes before this call.

        If the session has not expired and has no record under `request_id` (an empty one has
        none), the returned `last_used_time` is `now`. The store itself may keep the old one unless
        `Session.is_touch_due`.
        """

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """Applies one change and returns the sessions that it deleted to do so.

        Without `create`, raises SessionNotFound if the session is unknown.

        With `create`, a stored session of the same id is deleted first if it has expired at
        `commit.now`; otherwise SessionExists is raised. Then, if more than `max_sessions` are
        stored, the surplus is deleted: the expired sessions first, by expiry time, then the least
        recently used. Neither the new session nor a `protected` one is ever deleted, so that the
        store may be left with more than `max_sessions`.

        The idempotency record is stored with the session and deleted with it. It replaces the
        session's record of the same request id.
        """

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """Creates a session whose history begins with its parent's, and does what `commit` does.

        All of the child's messages but those `appended` are the parent's first ones. They are
        shared, not copied; later changes of one session, its deletion included, do not affect the
        other. Raises SessionNotFound for an unknown parent.
        """

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """Returns the number of messages in the first `exchange_count` exchanges, and their bytes.

        Costs O(log n). Returns (0, 0) for an unknown session.
        """

    async def touch(self, session_id: str, now: float) -> bool:
        """Sets `last_used_time` after all writes before this call; returns False if unknown."""

    async def end(self, session_id: str) -> bool:
        """Deletes the session and returns True, or returns False if the id is unknown.

        Costs O(log n): the messages may be deleted later.
        """

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """Deletes expired sessions that are not `protected`, 1,000 at most, and returns their ids.

        The caller repeats the call until nothing is returned.
        """

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
    ) -> tuple[Sequence[Session], int]:
        """Returns up to `limit` active sessions in the order of creation, and the next cursor.

        A session is active if it has not expired at `now`, or if it is in `active_or_in_turn`. A
        session is only returned if it has all `labels`. `after` is the cursor of the page before,
        0 for the first page. The returned cursor is 0 on the last page.
        """

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """Returns the record that the session committed under this request id.

        Returns None if there is none, or if the request id is empty.
        """

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """Returns the session id and the record of a committed completion, or None."""

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """Returns the session id and the record of the creation under this request id, or None.

        Only records without a `completion_id` count: those of CreateSession and ForkSession, whose
        request ids are unique over all sessions.
        """

    async def counts(self, now: float, active_or_in_turn: Collection[str] = ()) -> StoreCounts:
        """Returns how much is stored. The active sessions are those that `list` would return."""


class StoreLocked(Exception):
    """Another process has the store open: a start-up failure, not a caller's error."""
