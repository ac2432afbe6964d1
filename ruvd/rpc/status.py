"""The error table: the gRPC status of every error of the core, with rich details.

The details follow google.rpc's error model: an ErrorInfo with our domain and the reason, a
BadRequest that names every wrong field, and a RetryInfo where waiting helps.
"""

import math
import string
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ServicerContext

from ruvd.core import errors
from ruvd.core.errors import (
    FieldViolation,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    RuvdError,
)

DOMAIN = "ruvd"
DETAILS = "grpc-status-details-bin"
# A status travels in trailing metadata, for which gRPC's default limit is 8 KiB, with base64.
_MAX_DETAIL_BYTES = 2048
_MAX_MESSAGE_BYTES = 1500
# More does not fit a Duration, which ends at 10,000 years. Nobody waits as long.
_MAX_DELAY_SECONDS = 1e9
_DEADLINE_SLACK_SECONDS = 0.1
# grpcio's error of a message that is sent to a caller who has gone. Its class is private.
_CALL_HAS_GONE = "ExecuteBatchError"
INTERNAL_TEXT = "internal error; the daemon's log has the details"

CODES: dict[type[RuvdError], grpc.StatusCode] = {
    errors.SessionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SessionEvicted: grpc.StatusCode.NOT_FOUND,
    errors.SessionExpired: grpc.StatusCode.NOT_FOUND,
    errors.CompletionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.CompletionCancelled: grpc.StatusCode.CANCELLED,
    errors.SessionBusy: grpc.StatusCode.ABORTED,
    errors.SessionEnded: grpc.StatusCode.ABORTED,
    errors.OwnershipLost: grpc.StatusCode.ABORTED,
    errors.CompletionInterrupted: grpc.StatusCode.ABORTED,
    errors.SessionLimit: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.EngineRateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.EngineRejected: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SchemaViolated: grpc.StatusCode.ABORTED,
    errors.RequestIdReused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextTooLong: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResponseTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionsDisabled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DataCorrupted: grpc.StatusCode.DATA_LOSS,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.EngineTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.BackupExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.BackupFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IdentityUnavailable: grpc.StatusCode.UNAVAILABLE,
}


class ForwardedStatus(Exception):
    """The status with which another replica answered a call that was forwarded to it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        trailing: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailing = trailing

    def rich(self) -> status_pb2.Status:
        """Returns the details, without any if the status has none."""
        for name, value in self.trailing:
            if name == DETAILS and isinstance(value, bytes):
                return status_pb2.Status.FromString(value)
        number: int = self.code.value[0]
        return status_pb2.Status(code=number, message=self.message)

    def reason(self) -> str:
        """Returns the reason in the details, or an empty text."""
        info = error_details_pb2.ErrorInfo()
        return next((info.reason for each in self.rich().details if each.Unpack(info)), "")

    def retry_seconds(self) -> float | None:
        """Returns the delay after which the call may be tried again, or None."""
        info = error_details_pb2.RetryInfo()
        found = any(each.Unpack(info) for each in self.rich().details)
        return info.retry_delay.ToNanoseconds() / 1e9 if found else None


def trailing(error: BaseException, rich: status_pb2.Status) -> Sequence[tuple[str, str | bytes]]:
    """Returns the trailing metadata of a failed call."""
    if isinstance(error, ForwardedStatus):
        return error.trailing
    return ((DETAILS, rich.SerializeToString()),)


def is_too_late(call: ServicerContext[Any, Any]) -> bool:
    """Whether a cancelled call was cancelled by its deadline.

    The client's deadline passes earlier than the server's, by the time that the call travelled.
    """
    left = call.time_remaining()
    return left is not None and left <= _DEADLINE_SLACK_SECONDS


def is_of_lost_call(error: BaseException) -> bool:
    """Whether an error says no more than that the caller has gone."""
    return type(error).__name__ == _CALL_HAS_GONE


def to_status(error: BaseException) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Returns the gRPC code and the rich status of an error.

    An error that is no RuvdError is a bug and becomes INTERNAL with a fixed text.
    """
    if isinstance(error, ForwardedStatus):
        return error.code, error.rich()
    if not isinstance(error, RuvdError):
        return _status(grpc.StatusCode.INTERNAL, INTERNAL_TEXT, [_info("INTERNAL")])
    details: list[ProtoMessage] = [_info(error.reason())]
    if isinstance(error, QuotaExceeded):
        details = [_info(error.reason(), {"quota": error.quota})]
    if isinstance(error, InvalidRequest | PermissionDenied) and error.violations:
        details.append(_bad_request(error.violations))
    seconds = error.retry_after_seconds
    if seconds is not None and not math.isnan(seconds):
        delay = duration_pb2.Duration(nanos=0)
        delay.FromNanoseconds(int(min(max(seconds, 0.0), _MAX_DELAY_SECONDS) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    # An error that is no row of the table is a kind of one that is.
    code = next(CODES[each] for each in type(error).__mro__ if each in CODES)
    return _status(code, str(error), details)


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """Returns the violations that fit, and a last one with the number of the others, if any."""
    bad = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        field, description = _cut(violation.field, 200), _cut(violation.description, 400)
        if bad.ByteSize() + len(field) + len(description) > _MAX_DETAIL_BYTES:
            bad.field_violations.add(
                field="request", description=f"{len(violations) - number} more are wrong"
            )
            break
        bad.field_violations.add(field=field, description=description)
    return bad


def _info(reason: str, metadata: dict[str, str] | None = None) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _status(
    code: grpc.StatusCode, message: str, details: list[ProtoMessage]
) -> tuple[grpc.StatusCode, status_pb2.Status]:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    message = _cut(message, _MAX_MESSAGE_BYTES)
    number: int = code.value[0]
    return code, status_pb2.Status(code=number, message=message, details=packed)


def _cut(text: str, most: int) -> str:
    """Cuts a text to `most` bytes in percent-encoding, which is how gRPC sends it."""
    head = text[: most + 1]  # one character more than can fit
    if len(quote(head, safe=string.printable)) <= most:
        return text
    size = 0
    for end, character in enumerate(head):
        size += len(quote(character, safe=string.printable))
        if size > most:
            return text[:end] + " ..."
    return text
