"""Messages in OpenAI's format, to and from ours. Pure: JSON values in, values out.

Reasoning is `reasoning_content`, as servers of open models have it. What our messages do not hold
is refused and not dropped: only what is empty may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ruvd_client import Message, Role
from ruvd_client.v1.session_service_pb2 import ToolCall

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
# JSON leaves them alone, but a terminal does not, and some readers take them for a line's end.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")


class LineRefused(Exception):
    """A line of which nothing can be made; the message says why, `path` is what is wrong in it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path


def one_line(json_text: str) -> str:
    """JSON without what a terminal or a reader of lines may take for more than text."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def fields_of(message: Message) -> dict[str, Any]:
    """The message as OpenAI has it; what is empty is left out, but for the content."""
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
    """A message of the conversation. Raises LineRefused."""
    fields = read_object(value, path)
    word = fields.pop("role", None)
    if word == "system":
        raise LineRefused(f"{path}.role", "only the first message may be a system message")
    if not isinstance(word, str) or word not in _ROLES:
        raise LineRefused(f"{path}.role", f"{word!r} is not system, user, assistant or tool")
    message = Message(role=_ROLES[word])
    if word == "assistant":
        message.tool_calls.extend(_tool_calls(fields.pop("tool_calls", None), f"{path}.tool_calls"))
        if (reasoning := fields.pop("reasoning_content", None)) is not None:
            message.reasoning = read_text(reasoning, f"{path}.reasoning_content")
    elif word == "tool":
        message.tool_call_id = read_text(fields.pop("tool_call_id", None), f"{path}.tool_call_id")
    content = fields.pop("content", None)
    if content is not None or not message.tool_calls:
        message.content = _content(content, f"{path}.content")
    nothing_else(fields, f"{path}.")
    return message


def is_system(value: Any, path: str) -> bool:
    """Whether a message is the system's. Raises LineRefused for what is no object."""
    return read_object(value, path).get("role") == "system"


def read_system(value: Any, path: str) -> str:
    """The text of a system message. Raises LineRefused."""
    fields = read_object(value, path)
    del fields["role"]
    text = _content(fields.pop("content", None), f"{path}.content")
    nothing_else(fields, f"{path}.")
    return text


def read_object(value: Any, path: str) -> dict[str, Any]:
    """A copy of the object, to take fields from. Raises LineRefused."""
    if not isinstance(value, dict):
        raise LineRefused(path, "an object is needed")
    return dict(value)


def read_text(value: Any, path: str) -> str:
    """A text that can be sent. Raises LineRefused."""
    if not isinstance(value, str):
        raise LineRefused(path, "a text is needed")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise LineRefused(path, "half a surrogate pair is no text")
    return value


def nothing_else(fields: Mapping[str, Any], path: str) -> None:
    """What is left over must be empty, as OpenAI's own null and [] fields are."""
    for name, value in fields.items():
        if value is not None and value not in ("", [], {}):
            raise LineRefused(f"{path}{name}", "ruvd has no place for it")


def _tool_calls(value: Any, path: str) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineRefused(path, "a list is needed")
    return [_tool_call(each, f"{path}[{number}]") for number, each in enumerate(value)]


def _tool_call(value: Any, path: str) -> ToolCall:
    fields = read_object(value, path)
    kind = fields.pop("type", None)
    if kind not in (None, "function"):
        raise LineRefused(f"{path}.type", f"{kind!r} is not function")
    function = read_object(fields.pop("function", None), f"{path}.function")
    call = ToolCall(
        id=read_text(fields.pop("id", None), f"{path}.id"),
        name=read_text(function.pop("name", None), f"{path}.function.name"),
        arguments=read_text(function.pop("arguments", None), f"{path}.function.arguments"),
    )
    nothing_else(function, f"{path}.function.")
    nothing_else(fields, f"{path}.")
    return call


def _content(content: Any, path: str) -> str:
    if not isinstance(content, list):
        return read_text(content, path)
    texts = []
    for number, each in enumerate(content):
        part = read_object(each, f"{path}[{number}]")
        kind = part.pop("type", None)
        if kind != "text":
            raise LineRefused(f"{path}[{number}].type", f"{kind!r} is not text")
        texts.append(read_text(part.pop("text", None), f"{path}[{number}].text"))
        nothing_else(part, f"{path}[{number}].")
    return "".join(texts)
