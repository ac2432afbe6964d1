"""What happened: the events that an observer is told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ruvd.core.model import Timings, Usage
from ruvd.core.values import dataclass


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
class SessionCreationAborted:
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
    | SessionCreationAborted
    | SessionGone
)
Observer: TypeAlias = Callable[[Event], None]
