"""Conversion of a request of OpenAI's /v1/chat/completions to a CompleteRequest. Pure functions.

Types are checked here, because a wrong one cannot be converted; the daemon checks ranges. A field
that ruvd's API does not have goes to the engine's server in `extra_body`. Null means unset.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ruvd_client import Message, ResponseFormat, Role, Tool, ToolChoiceMode, request
from ruvd_client.protocol import CompleteArguments
from ruvd_client.v1.session_service_pb2 import CompleteRequest

from ruvd.cli.openai_conversation import read_conversation
from ruvd.cli.openai_messages import (
    LineRefused,
    Reader,
    Reading,
    read_fields,
    read_list,
    read_object,
    read_text,
    refuse_rest,
)

_MAX_DEPTH = 32  # of a value in extra_body, to stay within protobuf's limit on nesting
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_TOKEN_ID = re.compile("[0-9]{1,10}")
_MODES = {
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "required": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
}
_ONLY_VALUES = {  # of fields that ruvd does not have, and that may have their default
    "n": 1,
    "stream": False,
    "logprobs": False,
    "top_logprobs": 0,
    "modalities": ["text"],
}


def read_request(value: Any, request_id: str) -> CompleteRequest:
    """Returns the stateless request of a line's body. Raises LineRefused."""
    body = read_object(value, "body")
    messages = _messages(body.pop("messages", None))
    arguments = _arguments(body)
    arguments["request_id"] = request_id
    return request(messages, **arguments)


def _messages(value: Any) -> list[Message]:
    path = "body.messages"
    if not isinstance(value, list) or not value:
        raise LineRefused(path, "must be a list of at least one message")
    conversation = read_conversation(value, path, Reading())
    system = conversation.system_prompt
    first = [Message(role=Role.ROLE_SYSTEM, content=system)] if system else []
    return [*first, *conversation.messages]


def _arguments(body: dict[str, Any]) -> CompleteArguments:
    rest = {name: value for name, value in body.items() if value is not None}
    arguments = read_fields(rest, _FIELDS, "body")
    if "max_completion_tokens" in arguments:
        max_tokens = arguments.pop("max_completion_tokens")
        if arguments.setdefault("max_tokens", max_tokens) != max_tokens:
            raise LineRefused("body.max_tokens", "differs from max_completion_tokens")
    for name, value in _ONLY_VALUES.items():
        if name in rest and (rest[name] != value or type(rest[name]) is not type(value)):
            raise LineRefused(f"body.{name}", f"must be {json.dumps(value)}")
        rest.pop(name, None)
    if rest:
        for name, value in rest.items():
            _check_sendable(name, "body")
            _check_sendable(value, f"body.{name}")
        arguments["extra_body"] = rest
    return arguments  # type: ignore[return-value]


def _check_sendable(value: Any, path: str, depth: int = 1) -> None:
    if depth > _MAX_DEPTH:
        raise LineRefused(path, f"is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        read_text(value, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if _number(value, path) != value and isinstance(value, int):
            raise LineRefused(path, "is an integer that a double cannot represent")
    elif isinstance(value, list):
        for each in value:
            _check_sendable(each, path, depth + 1)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_sendable(name, path, depth + 1)
            _check_sendable(each, path, depth + 1)


def _number(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise LineRefused(path, "must be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise LineRefused(path, "is too large") from error


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise LineRefused(path, "must be true or false")
    return value


def _integer(within: range) -> Reader[int]:
    def read(value: Any, path: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in within:
            raise LineRefused(path, f"must be an integer from {within.start} to {within.stop - 1}")
        return value

    return read


def _stop(value: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        return [read_text(value, path)]
    return read_list(value, path, read_text)


def _logit_bias(value: Any, path: str) -> dict[int, float]:
    biases = {}
    for token, bias in read_object(value, path).items():
        if not _TOKEN_ID.fullmatch(token) or int(token) not in _INT32:
            raise LineRefused(f"{path}.{token}", "is not a token id")
        biases[int(token)] = _number(bias, f"{path}.{token}")
    return biases


def _tools(value: Any, path: str) -> list[Tool]:
    return read_list(value, path, _tool)


def _tool(value: Any, path: str) -> Tool:
    function = _typed_object(value, "function", path)
    path = f"{path}.function"
    name = read_text(function.pop("name", None), f"{path}.name")
    readers = {"description": read_text, "parameters": _schema, "strict": _flag}
    tool = Tool(name=name, **read_fields(function, readers, path))
    refuse_rest(function, f"{path}.")
    return tool


def _tool_choice(value: Any, path: str) -> Any:
    if isinstance(value, str):
        if value not in _MODES:
            raise LineRefused(path, f"must be {' or '.join(_MODES)}, not {value!r}")
        return _MODES[value]
    function = _typed_object(value, "function", path)
    name = read_text(function.pop("name", None), f"{path}.function.name")
    refuse_rest(function, f"{path}.function.")
    return name


def _response_format(value: Any, path: str) -> ResponseFormat | None:
    fields = read_object(value, path)
    if fields.get("type") == "text":
        refuse_rest({**fields, "type": None}, f"{path}.")
        return None
    if fields.get("type") == "json_object":
        # llama-server and Together take a schema with this type as well.
        if (schema := fields.pop("schema", None)) is not None:
            return ResponseFormat(json_schema=_schema(schema, f"{path}.schema"))
        refuse_rest({**fields, "type": None}, f"{path}.")
        return ResponseFormat(json_object=True)
    schema = _typed_object(value, "json_schema", path)
    path = f"{path}.json_schema"
    inner = read_object(schema.pop("schema", None), f"{path}.schema")
    readers = {"name": read_text, "strict": _flag, "description": read_text}
    fields = read_fields(schema, readers, path)
    if (description := fields.pop("description", None)) is not None:
        inner.setdefault("description", description)
    text = _schema(inner, f"{path}.schema")
    refuse_rest(schema, f"{path}.")
    return ResponseFormat(json_schema=text, **fields)


def _typed_object(value: Any, kind: str, path: str) -> dict[str, Any]:
    """Returns the inner object of `{"type": kind, kind: {...}}`."""
    fields = read_object(value, path)
    if (type_ := fields.pop("type", None)) != kind:
        raise LineRefused(f"{path}.type", f"must be {kind}, not {type_!r}")
    inner = read_object(fields.pop(kind, None), f"{path}.{kind}")
    refuse_rest(fields, f"{path}.")
    return inner


def _schema(value: Any, path: str) -> str:
    return read_text(json.dumps(read_object(value, path), ensure_ascii=False), path)


_FIELDS: Mapping[str, Reader[Any]] = {
    "model": read_text,
    "temperature": _number,
    "top_p": _number,
    "max_tokens": _integer(_INT32),
    "max_completion_tokens": _integer(_INT32),
    "stop": _stop,
    "seed": _integer(_INT64),
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "logit_bias": _logit_bias,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _flag,
    "response_format": _response_format,
}
