"""Where sessions are kept: the contract of every store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.values import value


@value(frozen=True, slots=True)
class Commit:
    """One atomic change of one session: the row as it is afterwards, and what is added to it.

    `appended` holds (exchange number, message) pairs in order; the first takes the position
    that was `message_count` before. `create` says that the session is new. `now` decides what
    has expired.
    """

    session: Session
    appended: Sequence[tuple[int, Message]] = ()
    idempotency_record: IdempotencyRecord | None = None
    create: bool = False
    max_sessions: int | None = None
    protected: Collection[str] = ()
    now: float = 0.0


@value(frozen=True, slots=True)
class StoreCounts:
    """What the store holds: all sessions, those not expired, and their messages."""

    sessions: int
    active: int
    messages: int


@value(frozen=True, slots=True)
class TurnSnapshot:
    """What a turn begins with. `session` is None if there is none, or it has expired.

    With a `receipt` the turn has been already. `exchanges` are those of the session's window, None
    if they are too many to be read along: `Store.exchanges` has them.
    """

    session: Session | None = None
    idempotency_record: IdempotencyRecord | None = None
    exchanges: Sequence[Exchange] | None = None


class Store(Protocol):
    """Where sessions live.

    Every method is atomic and safe to call from many tasks of one event loop. A write that has
    returned is durable and seen by every later read; one that raised had no effect. Writes of
    one session are serialised by the caller. Every method but `close` raises StoreUnavailable
    when the store cannot be read or written now, and works again when the cause is gone.
    A read never looks at expiry: that is the caller's rule. No call blocks the event loop.
    """

    async def open(self) -> None:
        """Open or make the store. Raises StoreLocked if another process has it open."""

    async def close(self) -> None:
        """Finish the writes that were begun, then let go. Idempotent."""

    async def get(self, session_id: str) -> Session | None:
        """The session without its messages. O(log n) in sessions, O(1) in its messages."""

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """The messages from exchange `first` on, an exchange a tuple, in order.

        Costs what it returns, however long the history before it. Empty for an unknown session.
        """

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """What a turn at `now` begins with, in one step, after the writes before it.

        Unless it has a receipt under the request id (empty: none), the session's
        `last_used_time` is set; in the store only if `Session.is_touch_due`.
        """

    async def commit(self, commit: Commit) -> Sequence[str]:
        """Apply one change and return the ids of the sessions that it evicted.

        With `create`, a session of that id that has expired at `commit.now` is replaced; one
        that has not raises SessionExists. Then, while there are more than `max_sessions`, the
        least recently used session that is neither this one nor `protected` goes (expired ones
        first, as they are the oldest); if none can go, the store keeps more than
        `max_sessions`. Without `create`, an unknown session raises SessionNotFound.
        The receipt, if any, belongs to the session and goes with it.
        """

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[str]:
        """As `commit` with `create`, but the first `session.message_count` messages are those
        of the parent, shared and not copied. Parent and child are independent afterwards.
        Raises SessionNotFound for an unknown parent.
        """

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """(messages, bytes of their content) in the first `exchange_count` exchanges. O(log n)."""

    async def touch(self, session_id: str, now: float) -> bool:
        """Set `last_used_time`; False for an unknown session. After the writes before it."""

    async def end(self, session_id: str) -> bool:
        """Delete the session; False if there was none. O(log n): messages may go later."""

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """Delete up to 1,000 sessions that have expired and are not protected; their ids."""

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
    ) -> tuple[Sequence[Session], int]:
        """Up to `limit` sessions not expired at `now`, or `in_force` all the same, in the order
        of creation, that have all `labels`; with the cursor for the next page (0 on the last).
        `after` 0 is the start.
        """

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """What was committed in the session under this request id."""

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """The session id and the receipt of a committed completion."""

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """The session id and the receipt of the commit with `create` under this request id.

        Only receipts without a `completion_id` count: those of CreateSession and ForkSession,
        whose request ids are unique over all sessions.
        """

    async def counts(self, now: float, active_or_in_turn: Collection[str] = ()) -> StoreCounts:
        """How much there is; active are those that `list` would give."""


class StoreLocked(Exception):
    """Another process has the store open. A start-up failure, not a caller's error."""
