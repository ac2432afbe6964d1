"""The errors that callers receive, each defined once.

The reason on the wire is the class's name in UPPER_SNAKE, and `ruvd.rpc.status` maps every class to
a gRPC code. This module knows nothing of gRPC.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: its path (`messages[2].role`) and how to correct it."""

    field: str
    description: str


def _sentence(violations: Sequence[FieldViolation]) -> str:
    return "; ".join(f"{v.field}: {v.description}" for v in violations)


class RuvdError(Exception):
    """An error that the caller receives. `retry_after_seconds` is set if waiting helps."""

    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds

    @classmethod
    def reason(cls) -> str:
        """Returns the reason on the wire: `SESSION_NOT_FOUND` for `SessionNotFound`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


class SessionNotFound(RuvdError):
    """There is no such session, or it has expired."""


class SessionEvicted(RuvdError):
    """The session was evicted to make room for another one."""


class SessionExpired(RuvdError):
    """The session was idle for longer than its idle timeout."""


class CompletionNotFound(RuvdError):
    """There is no such completion, or its events are no longer kept."""


class CompletionCancelled(RuvdError):
    """The completion was cancelled."""


class SessionBusy(RuvdError):
    """The session has a completion running, and the call asked not to wait."""

    retry_after_seconds = 1.0


class SessionEnded(RuvdError):
    """The session was ended while the call waited or ran."""


class OwnershipLost(RuvdError):
    """Another replica of the daemon took the session over before the turn was stored."""

    retry_after_seconds = 1.0


class CompletionInterrupted(RuvdError):
    """Another caller took the session over."""


class SessionLimit(RuvdError):
    """All sessions that the daemon may keep are in use."""

    retry_after_seconds = 1.0


class QuotaExceeded(RuvdError):
    """The caller's tenant has used up one of its quotas, which `quota` names."""

    retry_after_seconds = 1.0

    def __init__(
        self, message: str, *, quota: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.quota = quota


class Overloaded(RuvdError):
    """Too many completions or reads of histories are running or waiting."""

    retry_after_seconds = 1.0


class EngineRateLimited(RuvdError):
    """The engine asked to slow down."""

    retry_after_seconds = 1.0


class InvalidRequest(RuvdError):
    """The request is wrong; `violations` names every wrong field."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__(_sentence(violations))
        self.violations = tuple(violations)


class EngineRejected(RuvdError):
    """The engine refused the request; the message is the engine's."""


class SchemaViolated(RuvdError):
    """The answer has ended and does not follow the JSON Schema that was asked for."""


class RequestIdReused(RuvdError):
    """The request id was used before for a request with other content."""


class ContextTooLong(RuvdError):
    """The prompt does not fit the engine's context; with both sizes if the engine reports them."""

    def __init__(
        self, message: str, *, prompt_tokens: int | None = None, limit_tokens: int | None = None
    ) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class SessionTooLarge(RuvdError):
    """The session's history has reached its limit."""


class ResponseTooLarge(RuvdError):
    """The history does not fit into one response and has to be read page by page."""


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


class DataCorrupted(RuvdError):
    """Stored data is damaged: its checksum is wrong, or parts are missing. It is never served."""

    def __init__(self, message: str, *, session_id: str = "") -> None:
        super().__init__(message)
        self.session_id = session_id


class ShuttingDown(RuvdError):
    """The daemon is going down."""

    retry_after_seconds = 1.0


class EngineTimeout(RuvdError):
    """The engine did not answer in time."""


class Unauthenticated(RuvdError):
    """The call has no credential, or one that is not valid."""


class PermissionDenied(RuvdError):
    """The caller's role or tenant does not allow the call, or the fields in `violations`."""

    def __init__(self, denied: str | Sequence[FieldViolation]) -> None:
        if isinstance(denied, str):
            super().__init__(denied)
            self.violations: tuple[FieldViolation, ...] = ()
        else:
            super().__init__(_sentence(denied))
            self.violations = tuple(denied)


class BackupExists(RuvdError):
    """There is a backup of that name."""


class BackupFailed(RuvdError):
    """A backup cannot be made of this store, or cannot be written."""


class IdentityUnavailable(RuvdError):
    """The keys that the caller's token has to be checked with cannot be fetched."""

    retry_after_seconds = 1.0


def forget_frames(error: BaseException) -> None:
    """Drops the tracebacks of an error and its causes.

    A kept error would otherwise keep alive every object in those frames: requests, connections.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            current.__traceback__ = None
            pending += (current.__cause__, current.__context__)
