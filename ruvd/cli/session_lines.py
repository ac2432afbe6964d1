"""A session as a line of JSON, in OpenAI's message format. Pure: text in, values out.

The system prompt is the first message; reasoning is `reasoning_content`, as servers of open models
have it. What has no place in `messages` is in `metadata`; times are
there to be read, and a session that is made of a line has its own. What a session does not hold
is refused and not dropped: only what is empty may be left out. Usage and parent stay behind on
export, because a session that is imported generated nothing and shares nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from ruvd_client import ContextWindow, Message, Role, Session
from ruvd_client.protocol import CreateSessionArguments, to_seconds
from ruvd_client.v1.session_service_pb2 import Rendering, ToolCall

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
_RENDERING = "RENDERING_"
_TIMES = ("create_time", "last_used_time")
_MAX_INT32 = 2**31 - 1
_MAX_IDLE_SECONDS = 315_576_000_000  # a protobuf Duration's
# JSON leaves them alone, but a terminal does not, and some readers take them for a line's end.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")


class LineRefused(Exception):
    """A line of which no session can be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a line says: the session to make, and its messages without the system prompt."""

    arguments: CreateSessionArguments
    messages: tuple[Message, ...]


def to_line(session: Session) -> str:
    """The line, without its end, of a session that was read with its messages."""
    messages = [_fields_of(message) for message in session.messages]
    if session.system_prompt:
        messages.insert(0, {"role": "system", "content": session.system_prompt})
    window = session.context_window
    figures = {
        name: getattr(window, name)
        for name in ("keep_exchanges", "max_exchanges", "max_tokens")
        if window.HasField(name)
    }
    rendering = Rendering.Name(window.rendering).removeprefix(_RENDERING).lower()
    metadata = {
        "session_id": session.id,
        "labels": dict(sorted(session.labels.items())),
        "model": session.model,
        "idle_timeout_seconds": to_seconds(session.idle_timeout),
        "context_window": {**figures, "rendering": rendering},
        "create_time": session.create_time.ToJsonString(),
        "last_used_time": session.last_used_time.ToJsonString(),
    }
    line = json.dumps({"messages": messages, "metadata": metadata}, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def from_line(line: bytes) -> Conversation:
    """What the line says. Raises LineRefused."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineRefused(f"no JSON: {error}") from error
    fields = _object(value, "the line")
    messages = fields.pop("messages", None)
    if not isinstance(messages, list):
        raise LineRefused("messages: a list is needed")
    metadata = _object(fields.pop("metadata", None) or {}, "metadata")
    _nothing_else(fields, "")
    arguments = _arguments(metadata)
    if messages and _object(messages[0], "messages[0]").get("role") == "system":
        system = _object(messages.pop(0), "messages[0]")
        del system["role"]
        arguments["system_prompt"] = _content(system.pop("content", None), "messages[0].content")
        _nothing_else(system, "messages[0].")
        first = 1
    else:
        first = 0
    return Conversation(
        arguments,
        tuple(_message(each, f"messages[{number}]") for number, each in enumerate(messages, first)),
    )


def _fields_of(message: Message) -> dict[str, Any]:
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


def _message(value: Any, path: str) -> Message:
    fields = _object(value, path)
    word = fields.pop("role", None)
    if word == "system":
        raise LineRefused(f"{path}.role: only the first message may be a system message")
    if not isinstance(word, str) or word not in _ROLES:
        raise LineRefused(f"{path}.role: {word!r} is not system, user, assistant or tool")
    message = Message(role=_ROLES[word])
    if word == "assistant":
        message.tool_calls.extend(_tool_calls(fields.pop("tool_calls", None), f"{path}.tool_calls"))
        if (reasoning := fields.pop("reasoning_content", None)) is not None:
            message.reasoning = _text(reasoning, f"{path}.reasoning_content")
    elif word == "tool":
        message.tool_call_id = _text(fields.pop("tool_call_id", None), f"{path}.tool_call_id")
    content = fields.pop("content", None)
    if content is not None or not message.tool_calls:
        message.content = _content(content, f"{path}.content")
    _nothing_else(fields, f"{path}.")
    return message


def _tool_calls(value: Any, path: str) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineRefused(f"{path}: a list is needed")
    return [_tool_call(each, f"{path}[{number}]") for number, each in enumerate(value)]


def _tool_call(value: Any, path: str) -> ToolCall:
    fields = _object(value, path)
    kind = fields.pop("type", None)
    if kind not in (None, "function"):
        raise LineRefused(f"{path}.type: {kind!r} is not function")
    function = _object(fields.pop("function", None), f"{path}.function")
    call = ToolCall(
        id=_text(fields.pop("id", None), f"{path}.id"),
        name=_text(function.pop("name", None), f"{path}.function.name"),
        arguments=_text(function.pop("arguments", None), f"{path}.function.arguments"),
    )
    _nothing_else(function, f"{path}.function.")
    _nothing_else(fields, f"{path}.")
    return call


def _content(content: Any, path: str) -> str:
    if not isinstance(content, list):
        return _text(content, path)
    texts = []
    for number, each in enumerate(content):
        part = _object(each, f"{path}[{number}]")
        kind = part.pop("type", None)
        if kind != "text":
            raise LineRefused(f"{path}[{number}].type: {kind!r} is not text")
        texts.append(_text(part.pop("text", None), f"{path}[{number}].text"))
        _nothing_else(part, f"{path}[{number}].")
    return "".join(texts)


def _arguments(metadata: dict[str, Any]) -> CreateSessionArguments:
    known: Mapping[str, Callable[[Any, str], Any]] = {
        "session_id": _text,
        "model": _text,
        "labels": _labels,
        "idle_timeout_seconds": _idle_seconds,
        "context_window": _window,
    }
    arguments: CreateSessionArguments = {}
    for name, read in known.items():
        if (value := metadata.pop(name, None)) is not None:
            arguments[name] = read(value, f"metadata.{name}")  # type: ignore[literal-required]
    for name in _TIMES:
        _time(metadata.pop(name, None), f"metadata.{name}")
    _nothing_else(metadata, "metadata.")
    return arguments


def _labels(value: Any, path: str) -> dict[str, str]:
    labels = _object(value, path)
    return {_text(key, path): _text(label, f"{path}.{key}") for key, label in labels.items()}


def _idle_seconds(value: Any, path: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= _MAX_IDLE_SECONDS:
        raise LineRefused(f"{path}: {value!r} is no number of seconds above 0")
    return float(value)


def _window(value: Any, path: str) -> ContextWindow:
    fields = _object(value, path)
    window = ContextWindow()
    for name in ("keep_exchanges", "max_exchanges", "max_tokens"):
        if (number := fields.pop(name, None)) is None:
            continue
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 0 <= number <= _MAX_INT32:
            raise LineRefused(f"{path}.{name}: {number!r} is no whole number from 0 on")
        setattr(window, name, number)
    if (word := fields.pop("rendering", None)) is not None:
        renderings = {each.removeprefix(_RENDERING).lower(): each for each in Rendering.keys()[1:]}
        if not isinstance(word, str) or word not in renderings:
            raise LineRefused(f"{path}.rendering: {word!r} is not {' or '.join(renderings)}")
        window.rendering = Rendering.Value(renderings[word])
    _nothing_else(fields, f"{path}.")
    return window


def _time(value: Any, path: str) -> None:
    """Times are not kept; what is none is another program's, and not to be ignored."""
    if value is None:
        return
    try:
        Timestamp().FromJsonString(value)
    except (ValueError, TypeError) as error:
        raise LineRefused(f"{path}: {value!r} is no time of RFC 3339") from error


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LineRefused(f"{path}: an object is needed")
    return dict(value)


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise LineRefused(f"{path}: a text is needed")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise LineRefused(f"{path}: half a surrogate pair is no text")
    return value


def _nothing_else(fields: Mapping[str, Any], path: str) -> None:
    """What is left over must be empty, as OpenAI's own null and [] fields are."""
    for name, value in fields.items():
        if value is not None and value not in ("", [], {}):
            raise LineRefused(f"{path}{name}: a session has no place for it")
