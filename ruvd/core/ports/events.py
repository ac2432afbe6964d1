"""The events that observers are told of, within the call in which each happens."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from ruvd.core.model import Session, Timings, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.values import value


@value(frozen=True, slots=True)
class EngineStateChanged:
    """The engine of a name, or the default one, came up, went down or (None) was removed."""

    up: bool | None
    detail: str
    engine: str = ""


@value(frozen=True, slots=True)
class EngineStateMoved:
    """A conversation's KV state was saved from a slot to a file (`save`), or back (`restore`).

    The outcome is `ok`, `failed`, `refused` (nothing is saved, as the directory must not be used),
    or the reason why a file was unusable: `corrupt`, `foreign` (of another model) or `stale` (of
    another history).
    """

    action: str
    outcome: str
    seconds: float = 0.0


@value(frozen=True, slots=True)
class PromptEvaluated:
    """A part of a session's prompt was evaluated before the turn that needs it."""

    tokens: int
    seconds: float
    session_key: str


@value(frozen=True, slots=True)
class PromptFoundEvaluated:
    """A turn found `tokens` of its prompt evaluated ahead."""

    tokens: int


@value(frozen=True, slots=True)
class StoreStateChanged:
    """The store became available, or unavailable, for reads and writes."""

    up: bool
    detail: str


@value(frozen=True, slots=True)
class StoreBatch:
    """The store committed this many writes in one transaction."""

    writes: int


@value(frozen=True, slots=True)
class StoredDataDamaged:
    """Stored data of a session was found to be damaged, and was not served."""

    session_id: str
    detail: str


@value(frozen=True, slots=True)
class ReplicaJoined:
    """This daemon has its lease, under the id by which others name it."""

    replica: str


@value(frozen=True, slots=True)
class SessionTakenOver:
    """A turn took a session from another replica, whose lease was over."""

    session_id: str
    former_replica: str


@value(frozen=True, slots=True)
class WriteFenced:
    """A write was refused, because another replica has the session or has changed it.

    The reason is `taken` (since the turn began) or `created` (the session that this turn was to
    create). A write without a turn is tried again: the session was `in_use` by a turn of the other
    replica, or `changed` since it was read.
    """

    session_id: str
    reason: str


@value(frozen=True, slots=True)
class UncertainWriteEnded:
    """The answer to a write was lost, and its outcome was looked up.

    The outcome is `written`, `repeated` (it was not written, so it was tried again), or `unknown`
    (the database could not be asked in time).
    """

    session_id: str
    outcome: str


@value(frozen=True, slots=True)
class LeaseRenewed:
    """The lease of this replica was renewed, or that has `failed`."""

    failed: bool


@value(frozen=True, slots=True)
class CallForwarded:
    """A call was forwarded to another replica. Emitted within the call.

    The outcome is `ok`, `failed` (the other replica answered with an error), `stale` (it no longer
    had the session), `leaving` (it was shutting down), `unreachable`, `broken` (the connection
    broke), or `cancelled`.
    """

    rpc: str
    outcome: str
    seconds: float


@value(frozen=True, slots=True)
class CompletionBegan:
    """A call began a completion. Emitted within the call."""

    completion_id: str


@value(frozen=True, slots=True)
class CompletionJoined:
    """A call `resumed` a completion, or repeated its request id. Emitted within the call."""

    completion_id: str
    resumed: bool


@value(frozen=True, slots=True)
class QuotaRefused:
    """A call was refused, because its tenant had used up `quota`."""

    quota: str


@value(frozen=True, slots=True)
class EngineTaken:
    """A completion got a slot of the engine, `queue_seconds` after it began."""

    completion_id: str
    batch: bool
    queue_seconds: float


@value(frozen=True, slots=True)
class CompletionEnded:
    """A completion ended: `reason` is the name of the finish reason or, if it `failed`, the error.

    `engine` is the name of the engine, empty for the default one and where none was reached. The
    latency of a `batch` item means nothing, because items wait for each other on purpose.
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
    engine: str = ""


@value(frozen=True, slots=True)
class CompletionCommitted:
    """A turn of the session was committed, which is now as `session` says.

    The next turn is likely to have the same `options`.
    """

    session: Session
    options: CompletionOptions


@value(frozen=True, slots=True)
class SessionCompacted:
    """A summary of the session was stored, which is now as `session` says.

    The next turn is likely to have the same `options`.
    """

    session: Session
    options: CompletionOptions


@value(frozen=True, slots=True)
class SummaryRequested:
    """The engine was asked for a summary, which took `seconds`.

    The outcome is `written`, `interrupted` (a caller wanted the engine) or `failed`. `ahead` says
    that no caller waits for the summary.
    """

    session_id: str
    outcome: str
    ahead: bool
    seconds: float
    usage: Usage | None = None


@value(frozen=True, slots=True)
class CompactionGivenUp:
    """A summary of the session is not made for now, because of the reason that an error has."""

    session_id: str
    reason: str


@value(frozen=True, slots=True)
class SessionCreated:
    """A session was committed for the first time. It may have come with a long history."""

    session_id: str
    session: Session | None = dataclasses.field(default=None, compare=False)


@value(frozen=True, slots=True)
class SessionCreationAborted:
    """The first turn of a session ended without a commit, so the session was never created."""

    session_id: str


@value(frozen=True, slots=True)
class SessionGone:
    """A session was deleted: it was `idle`, evicted for `capacity`, or ended by a `client`."""

    session_id: str
    reason: str


@value(frozen=True, slots=True)
class BackgroundTaskFailed:
    """A background task of the daemon raised an error. It will be started again."""

    name: str


@value(frozen=True, slots=True)
class AuditRecordLost:
    """A record of the audit log was lost, as too many wait to be written."""


Event: TypeAlias = (
    AuditRecordLost
    | BackgroundTaskFailed
    | CallForwarded
    | EngineStateChanged
    | EngineStateMoved
    | LeaseRenewed
    | PromptEvaluated
    | PromptFoundEvaluated
    | StoreStateChanged
    | StoreBatch
    | SummaryRequested
    | StoredDataDamaged
    | CompletionBegan
    | CompletionJoined
    | EngineTaken
    | QuotaRefused
    | CompletionCommitted
    | CompletionEnded
    | CompactionGivenUp
    | SessionCompacted
    | SessionCreated
    | SessionCreationAborted
    | SessionGone
    | ReplicaJoined
    | SessionTakenOver
    | UncertainWriteEnded
    | WriteFenced
)
Observer: TypeAlias = Callable[[Event], None]
