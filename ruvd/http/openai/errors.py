"""The error table of OpenAI's API: the HTTP status of every error of the core, in OpenAI's shape.

The official clients repeat a call by its status alone, unless `x-should-retry` says otherwise.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from ruvd.core import errors
from ruvd.core.errors import InvalidRequest, PermissionDenied, RuvdError
from ruvd.http.refusals import Refused
from ruvd.rpc.status import INTERNAL_TEXT

_MAX_MESSAGE = 4000
_MAX_DELAY_SECONDS = 3600
_REQUEST, _CONFLICT, _LIMIT, _SERVER = (
    "invalid_request_error",
    "conflict_error",
    "rate_limit_error",
    "server_error",
)
STATUSES: dict[type[RuvdError], int] = {
    errors.SessionNotFound: 404,
    errors.SessionEvicted: 404,
    errors.SessionExpired: 404,
    errors.CompletionNotFound: 404,
    errors.CompletionCancelled: 409,
    errors.SessionBusy: 409,
    errors.SessionEnded: 409,
    errors.OwnershipLost: 409,
    errors.CompletionInterrupted: 409,
    errors.SessionExists: 409,
    errors.BackupExists: 409,
    errors.SessionLimit: 429,
    errors.QuotaExceeded: 429,
    errors.EngineRateLimited: 429,
    errors.Overloaded: 503,
    errors.InvalidRequest: 400,
    errors.EngineRejected: 400,
    errors.ContextTooLong: 400,
    errors.SessionTooLarge: 400,
    errors.ResponseTooLarge: 400,
    errors.SessionsDisabled: 400,
    errors.BackupFailed: 400,
    errors.RequestIdReused: 422,
    errors.SchemaViolated: 502,
    errors.EngineUnavailable: 503,
    errors.StoreUnavailable: 503,
    errors.ShuttingDown: 503,
    errors.IdentityUnavailable: 503,
    errors.DataCorrupted: 500,
    errors.EngineTimeout: 504,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
}
# OpenAI's own codes, where its clients know one. Other codes are our reasons in lower case.
_CODES: dict[type[RuvdError], str] = {
    errors.ContextTooLong: "context_length_exceeded",
    errors.EngineRateLimited: "rate_limit_exceeded",
    errors.Unauthenticated: "invalid_api_key",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          409: _CONFLICT, 429: _LIMIT}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error as a response: its status, its headers, and the object under `error`."""

    status: int
    headers: dict[str, str]
    error: dict[str, Any]

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return json.dumps({"error": self.error}).encode()


def respond_to(error: BaseException) -> ErrorResponse:
    """Returns the response for an error. One that is not known is a bug, and tells nothing."""
    if not isinstance(error, RuvdError):
        return _response(500, "internal", INTERNAL_TEXT)
    # An error that is no row of the table is a kind of one that is.
    kind = next(each for each in type(error).__mro__ if each in STATUSES)
    code = _CODES.get(kind, error.reason().lower())
    param, status = None, STATUSES[kind]
    if isinstance(error, InvalidRequest | PermissionDenied) and error.violations:
        param = error.violations[0].field
    text = str(error)
    if isinstance(error, Refused):
        status, code, text = error.status, error.code, error.violations[0].description
    response = _response(status, code, text, param)
    if isinstance(error, Refused) and error.allow:
        response.headers["allow"] = error.allow
    response.headers["x-ruvd-reason"] = error.reason()
    seconds = error.retry_after_seconds
    if seconds is not None and not math.isnan(seconds):
        delay = math.ceil(min(max(seconds, 0.0), _MAX_DELAY_SECONDS))
        response.headers.update({"retry-after": str(delay), "x-should-retry": "true"})
    return response


def _response(status: int, code: str, text: str, param: str | None = None) -> ErrorResponse:
    kind = _TYPES.get(status, _REQUEST if status < 500 else _SERVER)
    message = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " ..."
    error = {"message": message, "type": kind, "param": param, "code": code}
    return ErrorResponse(status, {"x-should-retry": "false"}, error)
