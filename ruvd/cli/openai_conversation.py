"""Conversion of a conversation from OpenAI's format, as many programs write it. Pure functions.

Older and other spellings that mean the same are taken: `developer` for `system`, several system
messages at the beginning, `function_call` and the role `function`, arguments as an object, calls
without ids or with equal ones, results without an id, `reasoning`, and content as parts of text. A
part that ruvd's messages cannot hold is refused by its path, or left out if the `Reading` is
lenient.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ruvd_client import Message, Role
from ruvd_client.v1.session_service_pb2 import ToolCall

from ruvd.cli.openai_calls import OpenCalls
from ruvd.cli.openai_messages import LineRefused, Reading, read_object, read_text
from ruvd.engines.chat.engine_data import MESSAGE_FIELDS

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
_SYSTEM_ROLES = ("system", "developer")
_NO_OPEN_CALL = "answers no open tool call of this conversation"


@dataclass(slots=True)
class Conversation:
    """The system prompt, empty for none, and the messages after it."""

    system_prompt: str = ""
    messages: list[Message] = field(default_factory=list)


def read_conversation(values: Sequence[Any], path: str, reading: Reading) -> Conversation:
    """Reads the messages of a list. Raises LineRefused."""
    conversation, calls = Conversation(), OpenCalls()
    for index, value in enumerate(values):
        at = f"{path}[{index}]"
        with reading.part():
            fields = read_object(value, at)
            role = fields.pop("role", None)
            if role in _SYSTEM_ROLES:
                _add_system(conversation, fields, at, reading)
            else:
                pinned = fields.pop("pinned", None)
                message = _message(role, fields, at, reading, calls)
                message.pinned = _is_pinned(pinned, f"{at}.pinned", reading)
                calls.follow(message)
                conversation.messages.append(message)
    return conversation


def _is_pinned(value: Any, path: str, reading: Reading) -> bool:
    if value is not None and not isinstance(value, bool):
        reading.leave_out(path, "must be true or false")
    return value is True


def _add_system(
    conversation: Conversation, fields: dict[str, Any], path: str, reading: Reading
) -> None:
    if conversation.messages:
        raise LineRefused(f"{path}.role", "only the first message may be a system message")
    text = _content(fields.pop("content", None), f"{path}.content", reading).text
    reading.refuse_rest(fields, f"{path}.")
    texts = [part for part in (conversation.system_prompt, text) if part]
    conversation.system_prompt = "\n\n".join(texts)


def _message(
    role: Any, fields: dict[str, Any], path: str, reading: Reading, calls: OpenCalls
) -> Message:
    if role == "function":
        return _result_of_function(fields, path, reading, calls)
    if not isinstance(role, str) or role not in _ROLES:
        raise LineRefused(f"{path}.role", f"must be system, user, assistant or tool, not {role!r}")
    if role == "assistant":
        return _assistant(fields, path, reading, calls)
    if role == "tool":
        return _result(fields, path, reading, calls)
    content = _content(fields.pop("content", None), f"{path}.content", reading)
    reading.refuse_rest(fields, f"{path}.")
    if not content.text:
        raise LineRefused(f"{path}.content", "must be a string that is not empty")
    return Message(role=_ROLES[role], content=content.text)


# --- the assistant's messages ------------------------------------------------------------------


def _assistant(fields: dict[str, Any], path: str, reading: Reading, calls: OpenCalls) -> Message:
    message = Message(role=Role.ROLE_ASSISTANT)
    content = _content(fields.pop("content", None), f"{path}.content", reading)
    message.content, message.reasoning = content.text, content.reasoning
    for name in ("reasoning_content", "reasoning"):
        if (text := fields.pop(name, None)) not in (None, ""):
            with reading.part():
                text = read_text(text, f"{path}.{name}")
                if message.reasoning not in ("", text):
                    raise LineRefused(
                        f"{path}.{name}", "differs from the message's other reasoning"
                    )
                message.reasoning = text
    if not message.content and (refusal := fields.pop("refusal", None)) is not None:
        message.content = read_text(refusal, f"{path}.refusal")
    given = fields.pop("tool_calls", None)
    function = fields.pop("function_call", None)
    read = _tool_calls(given, f"{path}.tool_calls", reading)
    if function is not None:
        call = _function(function, f"{path}.function_call", reading)
        if not any((each.name, each.arguments) == (call.name, call.arguments) for each in read):
            read.append(call)
    message.tool_calls.extend(calls.opened(read))
    message.engine_data = _engine_data(fields, path, reading, is_kept=bool(read))
    reading.refuse_rest(fields, f"{path}.")
    return message


def _tool_calls(value: Any, path: str, reading: Reading) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineRefused(path, "must be a list")
    found = []
    for index, each in enumerate(value):
        with reading.part():
            found.append(_tool_call(each, f"{path}[{index}]", reading))
    return found


def _tool_call(value: Any, path: str, reading: Reading) -> ToolCall:
    fields = read_object(value, path)
    kind = fields.pop("type", None)
    if kind not in (None, "function"):
        raise LineRefused(f"{path}.type", f"must be function, not {kind!r}")
    function = read_object(fields.pop("function", None), f"{path}.function")
    data = _returned(function)
    call = _function(function, f"{path}.function", reading)
    call.engine_data = _engine_data(fields, path, reading)
    if data:
        call.engine_data = json.dumps({"function": data} | json.loads(call.engine_data or "{}"))
    if (given := fields.pop("id", None)) is not None:
        call.id = read_text(given, f"{path}.id")
    index = fields.pop("index", None)  # of a streamed fragment: the list has the order
    if index is not None and not isinstance(index, int):
        reading.leave_out(f"{path}.index", "must be an integer")
    reading.refuse_rest(fields, f"{path}.")
    return call


def _function(value: Any, path: str, reading: Reading) -> ToolCall:
    function = read_object(value, path)
    name = read_text(function.pop("name", None), f"{path}.name")
    arguments = function.pop("arguments", None)
    if arguments is None:
        arguments = ""
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call = ToolCall(name=name, arguments=read_text(arguments, f"{path}.arguments"))
    reading.refuse_rest(function, f"{path}.")
    return call


def _engine_data(
    fields: dict[str, Any], path: str, reading: Reading, *, is_kept: bool = True
) -> str:
    """Pops what a server needs back: ruvd's own text, or fields of servers. Both are kept only with
    tool calls."""
    given = fields.get("engine_data")
    if given is None or not is_kept:
        data = _returned(fields) if is_kept else {}
        return json.dumps({"fields": data}) if data else ""
    text = read_text(fields.pop("engine_data"), f"{path}.engine_data")
    if not _is_object(text):
        reading.leave_out(f"{path}.engine_data", "must be a JSON object as text")
        return ""
    return text


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _returned(fields: dict[str, Any]) -> dict[str, Any]:
    """Pops the fields that servers need back."""
    names = [name for name in MESSAGE_FIELDS if fields.get(name) not in (None, "", [], {})]
    return {name: fields.pop(name) for name in names}


# --- the tools' messages -----------------------------------------------------------------------


def _result(fields: dict[str, Any], path: str, reading: Reading, calls: OpenCalls) -> Message:
    content = _result_content(fields, path, reading)
    given, name = fields.pop("tool_call_id", None), fields.pop("name", None)
    if given is not None:
        call = calls.by_id(read_text(given, f"{path}.tool_call_id"))
    else:
        call = calls.by_name(name)
    if call is None:
        raise LineRefused(f"{path}.tool_call_id", _NO_OPEN_CALL)
    if name not in (None, "", call.name):
        reading.leave_out(f"{path}.name", f"is not the name of the call, {call.name!r}")
    reading.refuse_rest(fields, f"{path}.")
    calls.answered(call)
    return Message(role=Role.ROLE_TOOL, tool_call_id=call.id, content=content.text)


def _result_of_function(
    fields: dict[str, Any], path: str, reading: Reading, calls: OpenCalls
) -> Message:
    name = read_text(fields.pop("name", None), f"{path}.name")
    if (call := calls.by_name(name)) is None:
        raise LineRefused(f"{path}.name", _NO_OPEN_CALL)
    content = _result_content(fields, path, reading)
    reading.refuse_rest(fields, f"{path}.")
    calls.answered(call)
    return Message(role=Role.ROLE_TOOL, tool_call_id=call.id, content=content.text)


def _result_content(fields: dict[str, Any], path: str, reading: Reading) -> "_Content":
    """Reads a text or parts, or writes a result that is another JSON value as text."""
    content = fields.pop("content", None)
    if isinstance(content, dict | bool | int | float):
        content = json.dumps(content, ensure_ascii=False)
    return _content(content, f"{path}.content", reading)


# --- content -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Content:
    text: str = ""
    reasoning: str = ""


def _content(value: Any, path: str, reading: Reading) -> _Content:
    """Reads a text, null, or a list of parts."""
    if value is None:
        return _Content()
    if not isinstance(value, list):
        return _Content(read_text(value, path))
    content = _Content()
    for index, each in enumerate(value):
        with reading.part():
            _add_part(content, each, f"{path}[{index}]", reading)
    return content


def _add_part(content: _Content, value: Any, path: str, reading: Reading) -> None:
    if isinstance(value, str):
        content.text += read_text(value, path)
        return
    part = read_object(value, path)
    kind = part.pop("type", "text")
    if kind in ("text", "input_text", "output_text"):
        content.text += read_text(part.pop("text", None), f"{path}.text")
    elif kind == "refusal":
        content.text += read_text(part.pop("refusal", None), f"{path}.refusal")
    elif kind in ("thinking", "reasoning"):
        inner = part.pop(kind, part.pop("text", None))
        content.reasoning += _content(inner, f"{path}.{kind}", reading).text
    else:
        raise LineRefused(f"{path}.type", f"must be text, not {kind!r}")
    reading.refuse_rest(part, f"{path}.")
