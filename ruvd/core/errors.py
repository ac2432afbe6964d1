"""What can go wrong, named once.

Each leaf is a fact; its reason on the wire is its class's name in UPPER_SNAKE, and
`ruvd.rpc.status` maps every leaf to a gRPC code. Nothing here knows of gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: its path (`messages[2].role`) and what to do about it."""

    field: str
    description: str


class RuvdError(Exception):
    """Something a caller is told about. `retry_after_seconds` is set where waiting helps."""

    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds

    @classmethod
    def reason(cls) -> str:
        """The reason on the wire: `SessionNotFound` is `SESSION_NOT_FOUND`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


class SessionNotFound(RuvdError):
    """No such session, or it has expired."""


class CompletionNotFound(RuvdError):
    """No such completion, or its events are no longer kept."""


class CompletionCancelled(RuvdError):
    """The completion was cancelled."""


class SessionBusy(RuvdError):
    """The session has a completion running and the call asked not to wait."""

    retry_after_seconds = 1.0


class SessionEnded(RuvdError):
    """The session was ended while the call waited or ran."""


class CompletionInterrupted(RuvdError):
    """Another caller took the session over."""


class SessionLimit(RuvdError):
    """Every place for a session is in use."""

    retry_after_seconds = 1.0


class Overloaded(RuvdError):
    """Too many completions are running or waiting."""

    retry_after_seconds = 1.0


class EngineRateLimited(RuvdError):
    """The engine asked to slow down."""

    retry_after_seconds = 1.0


class InvalidRequest(RuvdError):
    """The request is wrong; `violations` names every wrong field."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class EngineRejected(RuvdError):
    """The engine refused the request; the message is the engine's."""


class RequestIdReused(RuvdError):
    """The request id came with other content before."""


class ContextTooLong(RuvdError):
    """The prompt does not fit the engine's context; with both figures if the engine says them."""

    def __init__(
        self, message: str, *, prompt_tokens: int | None = None, limit_tokens: int | None = None
    ) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class SessionTooLarge(RuvdError):
    """The session's history has reached its limit."""


class SessionsDisabled(RuvdError):
    """This daemon keeps no sessions."""


class SessionExists(RuvdError):
    """The session id is taken."""


class EngineUnavailable(RuvdError):
    """The engine is starting, restarting or out of reach."""

    retry_after_seconds = 1.0


class StoreUnavailable(RuvdError):
    """The store cannot be read or written now."""

    retry_after_seconds = 1.0


class ShuttingDown(RuvdError):
    """The daemon is going down."""

    retry_after_seconds = 1.0


class EngineTimeout(RuvdError):
    """The engine did not answer in time."""


def forget_frames(error: BaseException) -> None:
    """Let go of the frames that an error and its causes have come through: one that is kept would
    keep all that was at hand in them, requests and connections."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            left += (each.__cause__, each.__context__)
