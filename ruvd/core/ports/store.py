"""The contract of every session store, and the values that a store takes and returns."""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Protocol

from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.ports.turns import TurnReads
from ruvd.core.values import value

# A page with so many bytes of labels ends, so that it usually fits a gRPC client's default 4 MiB.
MAX_PAGE_BYTES = 3 << 20


@value(frozen=True, slots=True)
class Commit:
    """One atomic change of one session.

    `session` is its row after the change. `appended` holds (exchange number, message) pairs in
    order; the first takes the position `session.message_count - len(appended)`. `create` adds a
    new session; `max_sessions`, `max_own_sessions`, `evicts_own`, `protected` and `now` are used
    only then, see `Store.commit`. A `refusable` change fails where it would exceed a limit and
    nothing can be evicted. Any other one exceeds it, as the answer of a turn must not be lost.
    `max_own_bytes` is the limit of the tenant's stored bytes for a refusable change.
    """

    session: Session
    appended: Sequence[tuple[int, Message]] = ()
    idempotency_record: IdempotencyRecord | None = None
    create: bool = False
    max_sessions: int | None = None
    protected: Collection[str] = ()
    now: float = 0.0
    max_own_sessions: int | None = None
    max_own_bytes: int | None = None
    evicts_own: bool = True
    refusable: bool = False


class Gone(Enum):
    """The reason why a session that nobody ended is no longer there."""

    EVICTED = "evicted"
    EXPIRED = "expired"


@value(frozen=True, slots=True)
class RemovedSession:
    """A session that a commit deleted because it had `expired`, or else because of its capacity."""

    session_id: str
    expired: bool


@value(frozen=True, slots=True)
class TombstoneLimits:
    """The limits of tombstones, which say that a session has gone, and why.

    A tombstone counts for `retention_seconds`; with 0 there are none. Beyond `max_of_tenant` the
    tenant's oldest one is deleted, and beyond `max_in_all` the oldest of all.
    """

    retention_seconds: float = 7 * 86_400.0
    max_of_tenant: int = 10_000
    max_in_all: int = 100_000


DEFAULT_TOMBSTONES = TombstoneLimits()


@value(frozen=True, slots=True)
class StoreUsage:
    """The number of all stored sessions, and the number and the bytes of one tenant's.

    The bytes of a session are those of its history, of which a fork's includes what it shares, of
    its summary and of its system prompt. Expired sessions count until they are deleted.
    """

    sessions: int = 0
    own_sessions: int = 0
    own_bytes: int = 0


@value(frozen=True, slots=True)
class StoreCounts:
    """The numbers of all stored sessions, of the active ones among them, and of all messages."""

    sessions: int
    active: int
    messages: int


@value(frozen=True, slots=True)
class TenantCounts:
    """The numbers of a tenant's sessions, active ones and messages, and the histories' size."""

    tenant: str
    sessions: int = 0
    active: int = 0
    messages: int = 0
    history_bytes: int = 0


@value(frozen=True, slots=True)
class TurnSnapshot:
    """The stored state that a turn begins with.

    `session` is None if it is unknown or, being stored still, `has_expired`. Then `gone` says what
    `Store.gone` would, and `usage` is that of the session's tenant. With an `idempotency_record`
    the request was committed before, and `exchanges` is None. Otherwise
    `exchanges` begin at `session.window_start`; None says that they are too many to be read along,
    and that `Store.exchanges` returns them.
    """

    session: Session | None = None
    idempotency_record: IdempotencyRecord | None = None
    exchanges: Sequence[Exchange] | None = None
    has_expired: bool = False
    gone: Gone | None = None
    usage: StoreUsage | None = None


@value(frozen=True, slots=True)
class HistoryPart:
    """A session and some of its messages, read together, so that neither is newer."""

    session: Session
    messages: Sequence[Message]


class Store(TurnReads, Protocol):
    """A place where sessions are kept.

    Every method is atomic, may be called by many tasks of one event loop, and does not block it. A
    write that has returned is durable and visible to every later read; one that has raised changed
    nothing; one whose caller was cancelled takes effect completely or not at all. The caller
    serialises the writes of one session.

    Every method but `close` raises StoreUnavailable while the store cannot be read or written, and
    works again once the cause is gone, or after a restart if files of the store were lost. An
    expired session is treated like any other where nothing else is said. The call that deletes a
    session returns it; a session is never deleted otherwise. A read of damaged data raises
    DataCorrupted, also where the write of a turn reads it.
    """

    async def open(self) -> None:
        """Opens or creates the store. Raises StoreLocked if another process has it open.

        A store that outlives the process makes the clock go on from the reading that it keeps.
        """

    async def close(self) -> None:
        """Completes the writes that have begun, then closes the store. Idempotent."""

    async def get(self, session_id: str) -> Session | None:
        """Returns the session or None. O(log n) in sessions, O(1) in the session's messages."""

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """Returns the exchanges from number `first` on, in order; none for an unknown session.

        The cost depends on what is returned, not on the length of the history before it.
        """

    async def messages(
        self, session_id: str, first: int, max_messages: int, max_bytes: int
    ) -> HistoryPart | None:
        """Returns the session with its messages from position `first` on, or None if unknown.

        Stops at `max_messages`, and before the sizes of the messages exceed `max_bytes`, but not
        before the first message. The cost depends on what is returned, not on the history.
        """

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        """Returns what a turn at `now` begins with, in one step, after the writes before it.

        Without a record under the request id (an empty one has none), the `last_used_time` of a
        session that has not expired becomes `now`: in the snapshot always, in the store at least
        if `Session.is_touch_due`. A store that several daemons share raises SessionElsewhere while
        another one has a turn in the session.
        """

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        """Applies one change and returns the sessions that were deleted for it.

        Without `create`, raises SessionNotFound if the session is unknown. A store that several
        daemons share changes only a session that is as it was when `commit.session` was read. It
        raises OwnershipLost for a turn, whose record has a `completion_id`; for any other change
        SessionElsewhere while another daemon has a turn in the session, and SessionChanged
        otherwise. With `create`, deletes a session of that id if it has expired at `commit.now`,
        and raises SessionExists if it has not. Then makes room, see `ruvd.core.ports.room`: deletes
        the expired sessions of any tenant, by expiry time, and then the least recently used of the
        new session's own tenant, each only as long as there are too many. Neither the new session
        nor a `protected` one is ever deleted so. Each one that is, leaves a tombstone; the new
        session's own is deleted.

        Raises SessionLimit and QuotaExceeded for a `refusable` change, before anything is deleted.

        The idempotency record replaces one of the same request id, and is deleted with the session.
        """

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[RemovedSession]:
        """Does what `commit` with `create` does, for a session that continues another's history.

        All messages but the `appended` are the first ones of the parent, shared and not copied.
        Later changes of one session, deletion included, do not affect the other. Raises
        SessionNotFound for an unknown parent, and SessionChanged as `commit` does, if the parent is
        not as it was when the `version` in the commit's session was read.
        """

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """Returns (messages, bytes) of the first exchanges; zeros for an unknown id. O(log n)."""

    async def touch(self, session_id: str, now: float) -> bool:
        """Sets `last_used_time`, after the writes before it; returns False for an unknown id.

        A store that several daemons share does not set it back, as one of them may be late.
        """

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        """Deletes the session; returns False for an unknown id. O(log n): messages may go later.

        With `gone` it leaves a tombstone of that reason and time. Otherwise its tombstone is
        deleted as well, also that of an unknown id. A store that several daemons share deletes with
        EXPIRED only a session that has expired at `now` and in which no other one has a turn.
        """

    async def gone(self, session_id: str, now: float) -> Gone | None:
        """Returns the reason why a session is no longer there, or None if none is known.

        That of a stored session is EXPIRED if it has expired at `now`, and None otherwise.
        """

    async def usage(self, tenant: str) -> StoreUsage:
        """Returns what is stored, in all and of one tenant. O(log n)."""

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """Deletes up to 1,000 expired sessions that are not `protected`, and returns their ids.

        They leave tombstones. Also deletes up to 1,000 tombstones that no longer count.

        A store that outlives the process also stores the clock's reading if the wall clock was set.
        """

    async def list(
        self,
        *,
        after: int,
        limit: int,
        labels: Mapping[str, str],
        now: float,
        active_or_in_turn: Collection[str] = (),
        tenant: str | None = None,
    ) -> tuple[Sequence[Session], int]:
        """Returns a page of the active sessions with all `labels`, and the next page's cursor.

        They are those of one tenant (`ruvd.core.tenants`), or of all. Active are those that have
        not expired at `now`, and those in `active_or_in_turn`. They are in the order of creation.
        The cursor `after` is 0 for the first page; the returned one is 0 on the last page. A
        session whose stored record is damaged is left out. System prompts and summaries are left
        out, as they may be large. A page whose labels reach MAX_PAGE_BYTES ends.
        """

    async def idempotency_record(
        self, session_id: str, request_id: str
    ) -> IdempotencyRecord | None:
        """Returns the session's record of the request id, or None; None for an empty id."""

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """Returns the session id and the record of a committed completion, or None."""

    async def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """Returns the session id and the record of the creation under this request id, or None.

        Only records without a `completion_id` count: those of CreateSession and ForkSession, whose
        request ids are unique over all sessions.
        """

    async def counts(
        self, now: float, active_or_in_turn: Collection[str] = (), tenant: str | None = None
    ) -> StoreCounts:
        """Returns how much is stored, of one tenant or of all.

        The active sessions are those that `list` would return.
        """

    async def tenants(
        self, now: float, after: str, limit: int, active_or_in_turn: Collection[str] = ()
    ) -> Sequence[TenantCounts]:
        """Returns what each tenant has stored, for the first `limit` tenants that follow `after`.

        They are in the order of their names by code points. It reads a row of every session.
        """


class StoreLocked(Exception):
    """The store cannot be opened, mostly because another process has it: the start has failed."""


class StoreSealed(StoreLocked):
    """The store is encrypted, and the keys for it are missing or wrong."""
