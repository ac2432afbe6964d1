"""Conversion of messages from and to OpenAI's format. Pure functions over JSON values.

Reasoning is `reasoning_content`, as servers of open models call it. A field that ruvd's messages do
not have is refused, unless it is empty.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from ruvd_client import Message, Role
from ruvd_client.v1.session_service_pb2 import ToolCall

T = TypeVar("T")
# Reads the value at a path in the line. Raises LineRefused.
Reader: TypeAlias = Callable[[Any, str], T]

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
# Valid in JSON text, but a terminal may act on them, and some readers split lines at them.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")


class LineRefused(Exception):
    """A line is invalid; the message says why, and `path` names the field."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path


def escape_line(json_text: str) -> str:
    """Escapes characters of JSON text that a terminal or a line reader may act on."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def to_openai(message: Message) -> dict[str, Any]:
    """Returns the message in OpenAI's format, without empty fields except the content."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    fields: dict[str, Any] = {
        "role": Role.Name(message.role).removeprefix("ROLE_").lower(),
        "content": None if calls and not message.content else message.content,
    }
    more = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
    }
    return fields | {name: value for name, value in more.items() if value}


def read_message(value: Any, path: str) -> Message:
    """Reads a message that is not a system message. Raises LineRefused."""
    fields = read_object(value, path)
    role = fields.pop("role", None)
    if role == "system":
        raise LineRefused(f"{path}.role", "only the first message may be a system message")
    if not isinstance(role, str) or role not in _ROLES:
        raise LineRefused(f"{path}.role", f"must be system, user, assistant or tool, not {role!r}")
    message = Message(role=_ROLES[role])
    if role == "assistant":
        if (calls := fields.pop("tool_calls", None)) is not None:
            message.tool_calls.extend(read_list(calls, f"{path}.tool_calls", _tool_call))
        if (reasoning := fields.pop("reasoning_content", None)) is not None:
            message.reasoning = read_text(reasoning, f"{path}.reasoning_content")
    elif role == "tool":
        message.tool_call_id = read_text(fields.pop("tool_call_id", None), f"{path}.tool_call_id")
    content = fields.pop("content", None)
    if content is not None or not message.tool_calls:
        message.content = _content(content, f"{path}.content")
    refuse_rest(fields, f"{path}.")
    return message


def is_system(value: Any, path: str) -> bool:
    """Tells whether it is a system message. Raises LineRefused if it is not an object."""
    return read_object(value, path).get("role") == "system"


def read_system(value: Any, path: str) -> str:
    """Reads the text of a system message. Raises LineRefused."""
    fields = read_object(value, path)
    del fields["role"]
    text = _content(fields.pop("content", None), f"{path}.content")
    refuse_rest(fields, f"{path}.")
    return text


def read_object(value: Any, path: str) -> dict[str, Any]:
    """Returns a copy of the object, to pop fields from. Raises LineRefused."""
    if not isinstance(value, dict):
        raise LineRefused(path, "must be an object")
    return dict(value)


def read_list(value: Any, path: str, read: Reader[T]) -> list[T]:
    """Reads each value of a list. Raises LineRefused."""
    if not isinstance(value, list):
        raise LineRefused(path, "must be a list")
    return [read(each, f"{path}[{index}]") for index, each in enumerate(value)]


def read_fields(
    fields: dict[str, Any], readers: Mapping[str, Reader[Any]], path: str
) -> dict[str, Any]:
    """Pops and reads the fields that have a reader and are not null. Raises LineRefused."""
    given = [name for name in readers if fields.get(name) is not None]
    return {name: readers[name](fields.pop(name), f"{path}.{name}") for name in given}


def read_text(value: Any, path: str) -> str:
    """Returns a string that can be sent as UTF-8. Raises LineRefused."""
    if not isinstance(value, str):
        raise LineRefused(path, "must be a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise LineRefused(path, "contains an unpaired surrogate")
    return value


def refuse_rest(fields: Mapping[str, Any], path: str) -> None:
    """Raises LineRefused for a remaining field that is not empty, as null and [] are."""
    for name, value in fields.items():
        if value is not None and value not in ("", [], {}):
            raise LineRefused(f"{path}{name}", "is not supported by ruvd")


def _tool_call(value: Any, path: str) -> ToolCall:
    fields = read_object(value, path)
    kind = fields.pop("type", None)
    if kind not in (None, "function"):
        raise LineRefused(f"{path}.type", f"must be function, not {kind!r}")
    function = read_object(fields.pop("function", None), f"{path}.function")
    call = ToolCall(
        id=read_text(fields.pop("id", None), f"{path}.id"),
        name=read_text(function.pop("name", None), f"{path}.function.name"),
        arguments=read_text(function.pop("arguments", None), f"{path}.function.arguments"),
    )
    refuse_rest(function, f"{path}.function.")
    refuse_rest(fields, f"{path}.")
    return call


def _content(content: Any, path: str) -> str:
    if not isinstance(content, list):
        return read_text(content, path)
    return "".join(read_list(content, path, _part))


def _part(value: Any, path: str) -> str:
    part = read_object(value, path)
    if (kind := part.pop("type", None)) != "text":
        raise LineRefused(f"{path}.type", f"must be text, not {kind!r}")
    text = read_text(part.pop("text", None), f"{path}.text")
    refuse_rest(part, f"{path}.")
    return text
