"""The address, requests and errors, common to both clients.

Nothing here does I/O. Requests are built from plain Python values: seconds for durations, a str for
one user message, and enum values from `ruvd_client.v1.session_service_pb2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypedDict, Unpack

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2

from ruvd_client.reasons import ErrorReason
from ruvd_client.v1 import session_service_pb2 as pb

DEFAULT_ADDRESS = "127.0.0.1:50051"

CHANNEL_OPTIONS = (
    # The daemon limits the sizes, because its error says why a message was rejected.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An error that names many invalid fields may exceed gRPC's default limit of 8 KiB of metadata.
    ("grpc.max_metadata_size", 65_536),
    ("grpc.absolute_max_metadata_size", 131_072),
    # The daemon is local: there is no proxy, and the client reconnects soon after a restart.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_PAGE_SIZE = 1000  # the most that the daemon allows
# gRPC refuses a request far above max_request_bytes before ruvd sees it, with a text like this and
# no details: "Received message larger than max", "Decompressed message larger than max".
_TOO_LARGE_TEXT = "message larger than max"
REQUEST_TOO_LARGE = ErrorReason.REQUEST_TOO_LARGE

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Messages: TypeAlias = str | pb.Message | Iterable[pb.Message]
# A rule for all tools, or the name of the function that the model must call.
ToolChoice: TypeAlias = pb.ToolChoiceMode.ValueType | str


class CreateSessionArguments(TypedDict, total=False):
    """The arguments of `create_session`; see `CreateSessionRequest`."""

    session_id: str
    system_prompt: str
    messages: Messages
    labels: Mapping[str, str]
    context_window: pb.ContextWindow
    idle_timeout_seconds: float
    model: str
    request_id: str
    compaction_instruction: str
    summary: str
    summary_exchange_count: int


class CompleteArguments(TypedDict, total=False):
    """The arguments of `complete`; see `CompleteRequest` and `CompletionOptions`."""

    session_id: str
    system_prompt: str
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    stop: Iterable[str]
    seed: int
    bypass_cache: bool
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    tools: Iterable[pb.Tool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_format: pb.ResponseFormat
    extra_body: Mapping[str, Any]
    request_id: str
    require_existing: bool
    recreate_if_gone: bool
    if_busy: pb.IfBusy.ValueType
    on_disconnect: pb.OnDisconnect.ValueType
    disconnect_grace_seconds: float


def to_messages(messages: Messages) -> list[pb.Message]:
    """Returns the messages as a list; a str becomes one user message."""
    if isinstance(messages, str):
        return [pb.Message(role=pb.ROLE_USER, content=messages)]
    if isinstance(messages, pb.Message):
        return [messages]
    return list(messages)


def tool_result(call: pb.ToolCall, content: str) -> pb.Message:
    """Returns the message with a tool call's result, for the next turn."""
    return pb.Message(role=pb.ROLE_TOOL, tool_call_id=call.id, content=content)


def complete_request(messages: Messages, arguments: CompleteArguments) -> pb.CompleteRequest:
    """Returns the request of one completion. An option that is not given stays unset."""
    fields: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    if (grace := fields.pop("disconnect_grace_seconds", None)) is not None:
        fields["disconnect_grace"] = to_duration(grace)
    if (choice := fields.pop("tool_choice", None)) is not None:
        field = "function" if isinstance(choice, str) else "mode"
        fields["tool_choice"] = pb.ToolChoice(**{field: choice})
    if (body := fields.pop("extra_body", None)) is not None:
        fields["extra_body"] = Struct()
        fields["extra_body"].update(body)
    names = pb.CompletionOptions.DESCRIPTOR.fields_by_name
    options = {name: fields.pop(name) for name in list(fields) if name in names}
    return pb.CompleteRequest(
        messages=to_messages(messages), options=pb.CompletionOptions(**options), **fields
    )


def request(messages: Messages, **arguments: Unpack[CompleteArguments]) -> pb.CompleteRequest:
    """Returns an item of a batch, built from the arguments of `complete`."""
    return complete_request(messages, arguments)


def create_session_request(arguments: CreateSessionArguments) -> pb.CreateSessionRequest:
    """Returns the request of one CreateSession."""
    fields: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    if (timeout := fields.pop("idle_timeout_seconds", None)) is not None:
        fields["idle_timeout"] = to_duration(timeout)
    messages = to_messages(fields.pop("messages", ()))
    return pb.CreateSessionRequest(messages=messages, **fields)


def get_session_request(session_id: str, view: pb.SessionView.ValueType) -> pb.GetSessionRequest:
    """Returns the request for a session, or for its first page if it is read with messages."""
    paged = view == pb.SESSION_VIEW_FULL
    return pb.GetSessionRequest(
        session_id=session_id,
        view=view,
        page_size=_PAGE_SIZE if paged else 0,
        allow_message_parts=paged,
    )


def update_session_request(
    session_id: str,
    update_mask: Iterable[str] | None,
    idle_timeout_seconds: float | None,
    **fields: Any,
) -> pb.UpdateSessionRequest:
    """Returns the request of one UpdateSession.

    By default its mask has the given fields, those that are not None. A field that the mask names
    although it is not given gets the daemon's default.
    """
    if idle_timeout_seconds is not None:
        fields["idle_timeout"] = to_duration(idle_timeout_seconds)
    changes = {name: value for name, value in fields.items() if value is not None}
    paths = sorted(changes) if update_mask is None else list(update_mask)
    return pb.UpdateSessionRequest(
        session_id=session_id, update_mask=FieldMask(paths=paths), **changes
    )


def to_duration(seconds: float) -> Duration:
    """Converts seconds to a Duration, with microsecond precision."""
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def to_seconds(duration: Duration) -> float:
    """Converts a Duration to seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field of a request: its path and how to correct it."""

    field: str
    description: str


class RuvdError(Exception):
    """The error of a failed call.

    `code` is the gRPC status code. `reason` is the name of an `ErrorReason`
    (`SESSION_NOT_FOUND`), or empty if the error is not ruvd's (no daemon, deadline exceeded).
    The client itself adds `REQUEST_TOO_LARGE`, for a request that gRPC refused for its size.
    `violations` is set for INVALID_REQUEST, `retry_after_seconds` if the call is worth a retry.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds


def error_from(error: grpc.RpcError) -> RuvdError:
    """Converts a call's error, including the google.rpc details in its trailing metadata."""
    # Both kinds of RpcError are also a call with a final status, which the type stubs omit.
    call: Any = error
    trailing = call.trailing_metadata() or ()
    details = _parse_details(dict(trailing).get("grpc-status-details-bin"))
    return _build_error(call.code(), call.details() or "", details)


def error_from_status(status: status_pb2.Status) -> RuvdError:
    """Converts the status of a batch item to the error of an equivalent single call."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _build_error(code, status.message, status.details)


def _build_error(code: grpc.StatusCode, message: str, details: Iterable[Any]) -> RuvdError:
    reason = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None
    for detail in details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason if info.domain == "ruvd" else reason
        elif detail.Unpack(bad_request):
            violations = tuple(
                FieldViolation(v.field, v.description) for v in bad_request.field_violations
            )
        elif detail.Unpack(retry):
            retry_after = to_seconds(retry.retry_delay)
    if not reason and code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE_TEXT in message:
        reason = REQUEST_TOO_LARGE
        message += " (the daemon's max_request_bytes)"
    return RuvdError(code, reason, message, violations, retry_after)


def _parse_details(raw: str | bytes | None) -> list[Any]:
    if not isinstance(raw, bytes):
        return []
    try:
        return list(status_pb2.Status.FromString(raw).details)
    except DecodeError:  # written by a proxy, not by ruvd; the status itself is still valid
        return []
