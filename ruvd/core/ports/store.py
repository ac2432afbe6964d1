"""What the core needs from outside, and the contracts, written once.

`Store` keeps sessions, `Engine` generates, `Clock` tells the time, an `Observer` is told what
happened. Adapters live in `ruvd.stores` and `ruvd.engines`, and know nothing of each other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import field
from typing import Protocol, TypeAlias

from ruvd.model import (
    Exchange,
    FinishReason,
    Message,
    Receipt,
    Session,
    Timings,
    ToolCallDelta,
    Usage,
)
from ruvd.options import CompletionOptions
from ruvd.core.values import dataclass


class Clock(Protocol):
    """The time. Expiry is by the wall clock, so that it holds over a restart."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""


# --- store ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commit:
    """One atomic change of one session: the row as it is afterwards, and what is added to it.

    `appended` holds (exchange number, message) pairs in order; the first takes the position
    that was `message_count` before. `create` says that the session is new. `now` decides what
    has expired.
    """

    session: Session
    appended: Sequence[tuple[int, Message]] = ()
    receipt: Receipt | None = None
    create: bool = False
    max_sessions: int | None = None
    protected: Collection[str] = ()
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What the store holds: all sessions, those not expired, and their messages."""

    sessions: int
    active: int
    messages: int


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a turn begins with. `session` is None if there is none, or it has expired.

    With a `receipt` the turn has been already. `exchanges` are those of the session's window, None
    if they are too many to be read along: `Store.exchanges` has them.
    """

    session: Session | None = None
    receipt: Receipt | None = None
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

    async def begin(self, session_id: str, request_id: str, now: float) -> Beginning:
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
        in_force: Collection[str] = (),
    ) -> tuple[Sequence[Session], int]:
        """Up to `limit` sessions not expired at `now`, or `in_force` all the same, in the order
        of creation, that have all `labels`; with the cursor for the next page (0 on the last).
        `after` 0 is the start.
        """

    async def receipt(self, session_id: str, request_id: str) -> Receipt | None:
        """What was committed in the session under this request id."""

    async def completion(self, completion_id: str) -> tuple[str, Receipt] | None:
        """The session id and the receipt of a committed completion."""

    async def created_by(self, request_id: str) -> tuple[str, Receipt] | None:
        """The session id and the receipt of the commit with `create` under this request id.

        Only receipts without a `completion_id` count: those of CreateSession and ForkSession,
        whose request ids are unique over all sessions.
        """

    async def counts(self, now: float, in_force: Collection[str] = ()) -> StoreCounts:
        """How much there is; active are those that `list` would give."""


class StoreLocked(Exception):
    """Another process has the store open. A start-up failure, not a caller's error."""


# --- engine --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation. `session_key` is stable per session, empty if stateless.

    Requests with the same `prefix_key` have prompts that begin alike, for long enough that it is
    worth to evaluate that once; empty if nothing is known.
    """

    messages: Sequence[Message]
    options: CompletionOptions = CompletionOptions()
    session_key: str = ""
    prefix_key: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineText:
    """More text. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class EngineDone:
    """The last chunk: figures as the engine reported them; None is unknown.

    `prefill_seconds` is what the `prompt_tokens - cached_tokens` evaluated tokens took.
    """

    finish_reason: FinishReason
    usage: Usage | None = None
    prefill_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineReasoning:
    """More of what the model thinks before it answers. Never empty."""

    text: str


EngineChunk: TypeAlias = EngineText | EngineReasoning | ToolCallDelta | EngineDone


class Engine(Protocol):
    """What generates."""

    @property
    def model(self) -> str:
        """The name of the default model."""

    @property
    def slots(self) -> int | None:
        """How many completions it runs side by side; None if it sets no bound."""

    @property
    def window_tokens(self) -> int | None:
        """The default of a context window's `max_tokens`: what one completion's context holds
        less room for the answer; None if unknown."""

    async def start(self) -> None:
        """Begin to come up, and return at once. The observer is told when it is up."""

    async def ready(self) -> None:
        """Return when the engine is up. Raises EngineUnavailable when it is not within its
        start time-out, or has given up. Cancelling the wait is safe."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Generate: any number of chunks of the answer, then one EngineDone.

        Tool calls are numbered from 0; the first delta of each has its id and its name. Closing
        the generator or cancelling its task stops the generation in the engine, in every phase.
        Raises EngineUnavailable, EngineRejected (also for an option that the engine does not
        have), EngineRateLimited, EngineTimeout, or ContextTooLong, the last only before the
        first chunk.
        """

    async def models(self) -> Sequence[str]:
        """What `CompletionOptions.model` may be. Raises as `generate` does."""

    @property
    def warm(self) -> Warm | None:
        """What it can be asked to do with the state that it keeps; None if it keeps none."""

    async def close(self) -> None:
        """Save what may be saved, stop, and leave no process behind. Idempotent."""


class Warm(Protocol):
    """An engine's own state of conversations, such as a KV cache. It makes answers come sooner
    and never changes them."""

    def prepare(self, request: EngineRequest) -> AsyncGenerator[PromptEvaluated, None]:
        """Evaluate the messages, in steps, after which something else is going to be said.

        It yields after every step, and may be closed then. Raises as `Engine.generate` does.
        """

    def forget(self, session_key: str) -> None:
        """The session is no more: keep nothing of it."""

    def remembered(self) -> Collection[str]:
        """The sessions of which an earlier daemon, or this one, has saved something."""

    async def save(self) -> None:
        """Save what a stop would lose. Raises nothing."""


# --- observer ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineStateChanged:
    """The engine came up or went down."""

    up: bool
    detail: str


@dataclass(frozen=True, slots=True)
class EngineStateMoved:
    """The state of a conversation went out of a slot into a file (`save`), or back (`restore`).

    The outcome is `ok`, `failed`, or of a file that was of no use `corrupt`, `foreign` (another
    model's) or `stale` (another history's).
    """

    action: str
    outcome: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptEvaluated:
    """A part of a session's prompt was evaluated before somebody asked for it."""

    tokens: int
    seconds: float
    session_key: str


@dataclass(frozen=True, slots=True)
class PromptFoundEvaluated:
    """A turn found so much of its prompt evaluated ahead."""

    tokens: int


@dataclass(frozen=True, slots=True)
class StoreStateChanged:
    """The store could, or could not, be read and written."""

    up: bool
    detail: str


@dataclass(frozen=True, slots=True)
class StoreBatch:
    """One transaction of the store: how many writes it committed together."""

    writes: int


@dataclass(frozen=True, slots=True)
class CompletionBegan:
    """A call began a completion. Told within the call."""

    completion_id: str


@dataclass(frozen=True, slots=True)
class CompletionJoined:
    """A call got what another one began: it `resumed` it, or its request id was the same.

    Told within the call.
    """

    completion_id: str
    resumed: bool


@dataclass(frozen=True, slots=True)
class EngineTaken:
    """A completion that was begun `queue_seconds` ago has its place in the engine."""

    completion_id: str
    batch: bool
    queue_seconds: float


@dataclass(frozen=True, slots=True)
class CompletionEnded:
    """A completion ended: `reason` is a finish reason's name or, if it `failed`, the error's.

    Of a `batch` it says nothing about latency: its items wait for each other on purpose.
    """

    completion_id: str
    session_id: str
    batch: bool
    model: str
    reason: str
    failed: bool
    usage: Usage | None
    timings: Timings
    context_messages: int
    context_trimmed: bool


@dataclass(frozen=True, slots=True)
class SessionCreated:
    """A session was committed for the first time."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SessionNotMade:
    """The first turn of a session ended without a commit: there is none, as there was none."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SessionGone:
    """A session is no longer: reason is `idle`, `capacity` or `client`."""

    session_id: str
    reason: str


Event: TypeAlias = (
    EngineStateChanged
    | EngineStateMoved
    | PromptEvaluated
    | PromptFoundEvaluated
    | StoreStateChanged
    | StoreBatch
    | CompletionBegan
    | CompletionJoined
    | EngineTaken
    | CompletionEnded
    | SessionCreated
    | SessionNotMade
    | SessionGone
)
Observer: TypeAlias = Callable[[Event], None]
