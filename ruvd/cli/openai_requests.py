"""A request in the format of OpenAI's /v1/chat/completions, to one of ours. Pure.

Types are checked here, as they decide whether there is a request at all; ranges are the daemon's
to refuse. What the API has no field for goes to the engine's server in `extra_body`; null is as
good as left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ruvd_client import Message, ResponseFormat, Role, Tool, ToolChoiceMode, request
from ruvd_client.protocol import CompleteArguments
from ruvd_client.v1.session_service_pb2 import CompleteRequest

from ruvd.cli.openai_messages import (
    LineRefused,
    is_system,
    nothing_else,
    read_message,
    read_object,
    read_system,
    read_text,
)

_MAX_DEPTH = 32  # of a value in extra_body: what fits the nesting that a protobuf may have
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_TOKEN_ID = re.compile("[0-9]{1,10}")
_MODES = {
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "required": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
}
_SO_ANYWAY = {  # said or not
    "n": 1,
    "stream": False,
    "logprobs": False,
}


def read_request(value: Any, request_id: str) -> CompleteRequest:
    """The stateless request that the body of a line asks for. Raises LineRefused."""
    body = read_object(value, "body")
    messages = _messages(body.pop("messages", None))
    arguments = _arguments(body)
    arguments["request_id"] = request_id
    return request(messages, **arguments)


def _messages(value: Any) -> list[Message]:
    path = "body.messages"
    if not isinstance(value, list) or not value:
        raise LineRefused(path, "a list of messages is needed")
    messages = []
    for index, each in enumerate(value):
        if index == 0 and is_system(each, f"{path}[0]"):
            text = read_system(each, f"{path}[0]")
            messages.append(Message(role=Role.ROLE_SYSTEM, content=text))
        else:
            messages.append(read_message(each, f"{path}[{index}]"))
    return messages


def _arguments(body: dict[str, Any]) -> CompleteArguments:
    given = {name: value for name, value in body.items() if value is not None}
    arguments: dict[str, Any] = {}
    for name, read in _FIELDS.items():
        if name in given:
            arguments[name] = read(given.pop(name), f"body.{name}")
    if "max_completion_tokens" in arguments:
        most = arguments.pop("max_completion_tokens")
        if arguments.setdefault("max_tokens", most) != most:
            raise LineRefused("body.max_tokens", "differs from max_completion_tokens")
    for name, value in _SO_ANYWAY.items():
        if name in given and (given[name] != value or type(given[name]) is not type(value)):
            raise LineRefused(f"body.{name}", f"only {json.dumps(value)} is possible")
        given.pop(name, None)
    if given:
        for name, value in given.items():
            _check_sendable(name, "body")
            _check_sendable(value, f"body.{name}")
        arguments["extra_body"] = given
    return arguments  # type: ignore[return-value]


def _check_sendable(value: Any, path: str, depth: int = 1) -> None:
    if depth > _MAX_DEPTH:
        raise LineRefused(path, f"is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        read_text(value, path)
    elif isinstance(value, int | float):
        if _number(value, path) != value and isinstance(value, int):
            raise LineRefused(path, "is a whole number of more digits than can be sent")
    elif isinstance(value, list):
        for each in value:
            _check_sendable(each, path, depth + 1)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_sendable(name, path, depth + 1)
            _check_sendable(each, path, depth + 1)


def _number(value: Any, path: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise LineRefused(path, "a number is needed")
    try:
        return float(value)
    except OverflowError as error:
        raise LineRefused(path, "is too large a number") from error


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise LineRefused(path, "true or false is needed")
    return value


def _whole(within: range) -> Callable[[Any, str], int]:
    def read(value: Any, path: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in within:
            raise LineRefused(path, "a whole number is needed")
        return value

    return read


def _stop(value: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        return [read_text(value, path)]
    return [read_text(each, f"{path}[{index}]") for index, each in enumerate(value)]


def _logit_bias(value: Any, path: str) -> dict[int, float]:
    biases = {}
    for token, bias in read_object(value, path).items():
        if not _TOKEN_ID.fullmatch(token) or int(token) not in _INT32:
            raise LineRefused(f"{path}.{token}", "is no token's id")
        biases[int(token)] = _number(bias, f"{path}.{token}")
    return biases


def _tools(value: Any, path: str) -> list[Tool]:
    if not isinstance(value, list):
        raise LineRefused(path, "a list is needed")
    return [_tool(each, f"{path}[{index}]") for index, each in enumerate(value)]


def _tool(value: Any, path: str) -> Tool:
    function = _of_type(value, "function", path)
    path = f"{path}.function"
    tool = Tool(name=read_text(function.pop("name", None), f"{path}.name"))
    if (description := function.pop("description", None)) is not None:
        tool.description = read_text(description, f"{path}.description")
    if (parameters := function.pop("parameters", None)) is not None:
        tool.parameters = _schema(parameters, f"{path}.parameters")
    if (strict := function.pop("strict", None)) is not None:
        tool.strict = _flag(strict, f"{path}.strict")
    nothing_else(function, f"{path}.")
    return tool


def _tool_choice(value: Any, path: str) -> Any:
    if isinstance(value, str):
        if value not in _MODES:
            raise LineRefused(path, f"{value!r} is not {' or '.join(_MODES)}")
        return _MODES[value]
    function = _of_type(value, "function", path)
    name = read_text(function.pop("name", None), f"{path}.function.name")
    nothing_else(function, f"{path}.function.")
    return name


def _response_format(value: Any, path: str) -> ResponseFormat | None:
    fields = read_object(value, path)
    if fields.get("type") == "text":
        nothing_else({**fields, "type": None}, f"{path}.")
        return None
    described = _of_type(value, "json_schema", path)
    path = f"{path}.json_schema"
    asked = ResponseFormat(json_schema=_schema(described.pop("schema", None), f"{path}.schema"))
    if (name := described.pop("name", None)) is not None:
        asked.name = read_text(name, f"{path}.name")
    if (strict := described.pop("strict", None)) is not None:
        asked.strict = _flag(strict, f"{path}.strict")
    nothing_else(described, f"{path}.")
    return asked


def _of_type(value: Any, kind: str, path: str) -> dict[str, Any]:
    """The `value[kind]` of `{"type": kind, kind: {...}}`."""
    fields = read_object(value, path)
    if (word := fields.pop("type", None)) != kind:
        raise LineRefused(f"{path}.type", f"{word!r} is not {kind}")
    inner = read_object(fields.pop(kind, None), f"{path}.{kind}")
    nothing_else(fields, f"{path}.")
    return inner


def _schema(value: Any, path: str) -> str:
    return read_text(json.dumps(read_object(value, path), ensure_ascii=False), path)


_Reader: TypeAlias = Callable[[Any, str], Any]
_FIELDS: Mapping[str, _Reader] = {
    "model": read_text,
    "temperature": _number,
    "top_p": _number,
    "max_tokens": _whole(_INT32),
    "max_completion_tokens": _whole(_INT32),
    "stop": _stop,
    "seed": _whole(_INT64),
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "logit_bias": _logit_bias,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _flag,
    "response_format": _response_format,
}
