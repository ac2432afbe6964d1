"""Validation of request fields, naming every wrong field and not only the first.

A field that this daemon has no rule for is refused, and so is a field that its proto does not have:
a caller's request is fulfilled or refused, and no part of it is ignored.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from google.protobuf import unknown_fields
from google.protobuf.message import Message as ProtoMessage

from ruvd.core.errors import FieldViolation, InvalidRequest, PermissionDenied
from ruvd.core.model import Message, Role, ToolCall
from ruvd.core.tenant_limits import LimitsOf, unlimited
from ruvd.rpc import convert
from ruvd.v1 import session_service_pb2 as pb

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ID_RULE = "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
_NOT_SUPPORTED = "is not supported by this version of ruvd"
_MAX_VIOLATIONS = 100
_MAX_ID_BYTES = 128
_MAX_CALL_BYTES = 256
_MAX_DATA_CHARACTERS = 1 << 20
_ASSISTANTS = "is allowed only in an assistant's message"
MAX_IDLE_SECONDS = 10 * 366 * 86_400
_MAX_LABELS = 64
_MAX_KEY_BYTES = 63
_MAX_VALUE_BYTES = 255


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of a request."""

    max_request_bytes: int = 4 << 20
    max_message_bytes: int = 1 << 20
    max_messages: int = 1000
    max_grace_seconds: float = 600.0
    max_tool_calls: int = 128
    limits_of: LimitsOf = unlimited


class Checker:
    """Collects the violations of a request; `raise_if_wrong` ends the validation."""

    def __init__(self, request: ProtoMessage, limits: RequestLimits) -> None:
        self._violations: list[FieldViolation] = []
        self._denials: list[FieldViolation] = []
        self._more = 0
        self.limits = limits
        if (size := request.ByteSize()) > limits.max_request_bytes:
            self.refuse(
                "request",
                f"has {size} bytes, the limit is {limits.max_request_bytes} (max_request_bytes)",
            )
            self.raise_if_wrong()
        if _has_unknown(request, size):
            for path in islice(_unknown(request, ""), _MAX_VIOLATIONS):
                self.refuse(path, _NOT_SUPPORTED)

    def refuse(self, field: str, description: str) -> None:
        """Adds a violation. Those above the limit are only counted."""
        if len(self._violations) < _MAX_VIOLATIONS:
            self._violations.append(FieldViolation(field, description))
        else:
            self._more += 1

    def deny(self, denials: Iterable[FieldViolation]) -> None:
        """Adds fields that the tenant may not use. Violations are told before them."""
        self._denials += denials

    def check(self, ok: bool, field: str, description: str) -> None:  # noqa: FBT001  # a predicate
        """Adds a violation unless the field is `ok`."""
        if not ok:
            self.refuse(field, description)

    def raise_if_wrong(self) -> None:
        """Raises InvalidRequest with all violations, or PermissionDenied, if there are any."""
        if self._more:
            text = f"{self._more} more of its fields are wrong"
            self._violations.append(FieldViolation("request", text))
        if self._violations:
            raise InvalidRequest(self._violations)
        if self._denials:
            raise PermissionDenied(self._denials[:_MAX_VIOLATIONS])


def request_id(check: Checker, request_id: str) -> None:
    """Checks a request id, which may be any text of a bounded size."""
    size = len(request_id.encode())
    check.check(size <= _MAX_ID_BYTES, "request_id", f"may have at most {_MAX_ID_BYTES} bytes")


def idle_timeout(
    check: Checker, request: pb.CreateSessionRequest | pb.UpdateSessionRequest
) -> float | None:
    """Returns the idle timeout in seconds, None if unset."""
    if not request.HasField("idle_timeout"):
        return None
    seconds = request.idle_timeout.ToNanoseconds() / 1e9
    check.check(
        0 < seconds <= MAX_IDLE_SECONDS, "idle_timeout", "must be more than 0 and at most 10 years"
    )
    return seconds


def messages(check: Checker, protos: Sequence[pb.Message], *, history: bool) -> Sequence[Message]:
    """Converts a `history`, or the messages of a turn, which end with a message to answer."""
    limits = check.limits
    check.check(
        len(protos) <= limits.max_messages,
        "messages",
        f"has more than {limits.max_messages} messages (max_messages)",
    )
    messages = []
    for index, proto in enumerate(protos[: limits.max_messages]):
        field = f"messages[{index}]"
        role = convert.ROLES.get(proto.role)
        if role is None:
            check.refuse(f"{field}.role", "must be set to a known role")
        elif role is Role.SYSTEM:
            check.check(
                index == 0, f"{field}.role", "only the first message may be a system message"
            )
            check.check(not proto.pinned, f"{field}.pinned", "the system prompt is always sent")
        messages.append(_message(check, field, proto, role or Role.USER))
    if not history and messages:
        check.check(
            messages[-1].role in (Role.USER, Role.TOOL),
            f"messages[{len(messages) - 1}].role",
            "the last message must be the user's or a tool's",
        )
    return messages


def _message(check: Checker, field: str, proto: pb.Message, role: Role) -> Message:
    """Converts a message. A tool's message is matched to its call where the history is known."""
    content, call_id, reasoning = proto.content, proto.tool_call_id, proto.reasoning
    limit = check.limits.max_tool_calls
    calls = tuple(
        ToolCall(call.id, call.name, call.arguments, call.engine_data)
        for call in proto.tool_calls[: limit + 1]
    )
    if role in (Role.SYSTEM, Role.USER):
        check.check(bool(content), f"{field}.content", "must not be empty")
    if role is not Role.ASSISTANT:
        if calls:
            check.refuse(f"{field}.tool_calls", _ASSISTANTS)
        if reasoning:
            check.refuse(f"{field}.reasoning", _ASSISTANTS)
        if proto.engine_data:
            check.refuse(f"{field}.engine_data", _ASSISTANTS)
    if role is Role.TOOL:
        _call_text(check, f"{field}.tool_call_id", call_id)
    elif call_id:
        check.refuse(f"{field}.tool_call_id", "is allowed only in a tool's message")
    if calls:
        _calls(check, f"{field}.tool_calls", calls)
    _engine_data(check, f"{field}.engine_data", proto.engine_data)
    message = Message(role, content, calls, call_id, reasoning, proto.engine_data, proto.pinned)
    size, size_limit = message.size_bytes, check.limits.max_message_bytes
    if size > size_limit:
        check.refuse(
            f"{field}.content" if len(content.encode()) > size_limit else field,
            f"has {size} bytes, the limit is {size_limit} (max_message_bytes)",
        )
    return message


def _calls(check: Checker, field: str, calls: Sequence[ToolCall]) -> None:
    limit = check.limits.max_tool_calls
    check.check(len(calls) <= limit, field, f"has more than {limit} calls")
    ids: set[str] = set()
    for index, call in enumerate(calls):
        path = f"{field}[{index}]"
        _call_text(check, f"{path}.id", call.id)
        check.check(call.id not in ids, f"{path}.id", "is the id of another call")
        ids.add(call.id)
        _call_text(check, f"{path}.name", call.name)
        _engine_data(check, f"{path}.engine_data", call.engine_data)


def _engine_data(check: Checker, field: str, text: str) -> None:
    """Checks that a text is a JSON object. Only the engine knows what is in it."""
    if not text:
        return
    try:
        is_object = len(text) <= _MAX_DATA_CHARACTERS and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    check.check(is_object, field, "must be an engine_data that the daemon has given")


def _call_text(check: Checker, field: str, value: str) -> None:
    fits = 0 < len(value.encode()) <= _MAX_CALL_BYTES
    check.check(fits, field, f"must have 1 to {_MAX_CALL_BYTES} bytes")


def text(check: Checker, field: str, value: str) -> None:
    """Checks a text against `max_message_bytes`."""
    size = len(value.encode())
    limit = check.limits.max_message_bytes
    if size > limit:
        check.refuse(field, f"has {size} bytes, the limit is {limit} (max_message_bytes)")


def labels(check: Checker, field: str, given: Mapping[str, str]) -> None:
    """Checks the number of labels and the sizes of their keys and values."""
    check.check(len(given) <= _MAX_LABELS, field, f"has more than {_MAX_LABELS} labels")
    for key, value in islice(given.items(), _MAX_LABELS):
        path = f"{field}[{key!r}]"
        key_fits = 0 < len(key.encode()) <= _MAX_KEY_BYTES
        check.check(key_fits, path, f"the key must have 1 to {_MAX_KEY_BYTES} bytes")
        value_fits = len(value.encode()) <= _MAX_VALUE_BYTES
        check.check(value_fits, path, f"the value may have at most {_MAX_VALUE_BYTES} bytes")


def model_name(check: Checker, field: str, value: str) -> None:
    """Checks a model's name, whose length is bounded because it goes into logs."""
    check.check(
        len(value.encode()) <= _MAX_ID_BYTES, field, f"may have at most {_MAX_ID_BYTES} bytes"
    )


def is_id(value: str) -> bool:
    """Whether a session id is well formed."""
    return _ID.fullmatch(value) is not None


def _has_unknown(message: ProtoMessage, size: int) -> bool:
    """Whether a message of `size` bytes has unknown fields.

    It takes a quarter of the time that it takes to list them.
    """
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != size


def _unknown(message: ProtoMessage, path: str) -> Iterator[str]:
    """Yields the paths of the fields that our proto does not have, which end with a number."""
    unknown = unknown_fields.UnknownFieldSet(message)
    yield from (f"{path}#{unknown[index].field_number}" for index in range(len(unknown)))
    for descriptor, value in message.ListFields():
        kind = descriptor.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        if isinstance(value, ProtoMessage):
            yield from _unknown(value, f"{path}{descriptor.name}.")
        else:
            for index, item in enumerate(value):
                yield from _unknown(item, f"{path}{descriptor.name}[{index}].")
