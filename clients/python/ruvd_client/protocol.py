"""What both clients share: where the daemon is, what a request looks like, what an error says.

Pure functions; nothing here does I/O. Requests take plain Python values: seconds for durations,
a str for one user message, and enum values from `ruvd_client.v1.session_service_pb2`.
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

from ruvd_client.v1 import session_service_pb2 as pb

DEFAULT_ADDRESS = "127.0.0.1:50051"

CHANNEL_OPTIONS = (
    # Sizes are the daemon's to limit: its refusal says why.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An error that names many wrong fields is longer than gRPC's 8 KiB of metadata.
    ("grpc.max_metadata_size", 65_536),
    ("grpc.absolute_max_metadata_size", 131_072),
    # The daemon is on this machine: no proxy, and a restart is noticed soon.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Messages: TypeAlias = str | pb.Message | Iterable[pb.Message]
# A rule for all tools, or the name of the one that must be asked for.
ToolChoice: TypeAlias = pb.ToolChoiceMode.ValueType | str


class CreateSessionArguments(TypedDict, total=False):
    """What `create_session` takes; see `CreateSessionRequest`."""

    session_id: str
    system_prompt: str
    messages: Messages
    labels: Mapping[str, str]
    context_window: pb.ContextWindow
    idle_timeout_seconds: float
    model: str
    request_id: str


class CompleteArguments(TypedDict, total=False):
    """What `complete` takes; see `CompleteRequest` and `CompletionOptions`."""

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
    if_busy: pb.IfBusy.ValueType
    on_disconnect: pb.OnDisconnect.ValueType
    disconnect_grace_seconds: float


def to_messages(messages: Messages) -> list[pb.Message]:
    """A str is one user message."""
    if isinstance(messages, str):
        return [pb.Message(role=pb.ROLE_USER, content=messages)]
    if isinstance(messages, pb.Message):
        return [messages]
    return list(messages)


def tool_result(call: pb.ToolCall, content: str) -> pb.Message:
    """What came of a tool call: a message of the next turn, as is that of every other call."""
    return pb.Message(role=pb.ROLE_TOOL, tool_call_id=call.id, content=content)


def complete_request(messages: Messages, arguments: CompleteArguments) -> pb.CompleteRequest:
    """The request of one completion. An option that is not given stays unset."""
    fields: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    if (grace := fields.pop("disconnect_grace_seconds", None)) is not None:
        fields["disconnect_grace"] = to_duration(grace)
    if (choice := fields.pop("tool_choice", None)) is not None:
        which = "function" if isinstance(choice, str) else "mode"
        fields["tool_choice"] = pb.ToolChoice(**{which: choice})
    if (body := fields.pop("extra_body", None)) is not None:
        fields["extra_body"] = Struct()
        fields["extra_body"].update(body)
    names = pb.CompletionOptions.DESCRIPTOR.fields_by_name
    options = {name: fields.pop(name) for name in list(fields) if name in names}
    return pb.CompleteRequest(
        messages=to_messages(messages), options=pb.CompletionOptions(**options), **fields
    )


def request(messages: Messages, **arguments: Unpack[CompleteArguments]) -> pb.CompleteRequest:
    """An item of a batch, with what `complete` takes."""
    return complete_request(messages, arguments)


def create_session_request(arguments: CreateSessionArguments) -> pb.CreateSessionRequest:
    """The request of one CreateSession."""
    fields: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    if (timeout := fields.pop("idle_timeout_seconds", None)) is not None:
        fields["idle_timeout"] = to_duration(timeout)
    messages = to_messages(fields.pop("messages", ()))
    return pb.CreateSessionRequest(messages=messages, **fields)


def update_session_request(
    session_id: str,
    labels: Mapping[str, str] | None,
    idle_timeout_seconds: float | None,
    context_window: pb.ContextWindow | None,
) -> pb.UpdateSessionRequest:
    """The request of one UpdateSession. Only what is given is in its mask."""
    fields: dict[str, Any] = {"labels": labels, "context_window": context_window}
    if idle_timeout_seconds is not None:
        fields["idle_timeout"] = to_duration(idle_timeout_seconds)
    given = {name: value for name, value in fields.items() if value is not None}
    return pb.UpdateSessionRequest(
        session_id=session_id, update_mask=FieldMask(paths=sorted(given)), **given
    )


def to_duration(seconds: float) -> Duration:
    """Seconds as a Duration, to the microsecond."""
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def to_seconds(duration: Duration) -> float:
    """A Duration in seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: its path and what to do about it."""

    field: str
    description: str


class RuvdError(Exception):
    """A call that failed.

    `code` is gRPC's. `reason` is one of `ErrorReason` without its prefix
    (`SESSION_NOT_FOUND`), empty when the error is not ruvd's own: no daemon at the address, or
    a deadline. `violations` are set for INVALID_REQUEST, `retry_after_seconds` where waiting
    helps.
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
    """The error of a call, with the google.rpc details that its trailing metadata carries."""
    # Both flavours of RpcError are also a call with a final status, which the types do not say.
    call: Any = error
    trailing = call.trailing_metadata() or ()
    details = _details(dict(trailing).get("grpc-status-details-bin"))
    return _error(call.code(), call.details() or "", details)


def error_from_status(status: status_pb2.Status) -> RuvdError:
    """The error of one item of a batch: as its own call would have failed."""
    return _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details)


def _error(code: grpc.StatusCode, message: str, details: Iterable[Any]) -> RuvdError:
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
    return RuvdError(code, reason, message, violations, retry_after)


def _details(raw: str | bytes | None) -> list[Any]:
    if not isinstance(raw, bytes):
        return []
    try:
        return list(status_pb2.Status.FromString(raw).details)
    except DecodeError:  # whatever is in between wrote this; the status itself still holds
        return []
