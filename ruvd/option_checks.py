"""Checks of how to generate: CompletionOptions, with every wrong field named by its path.

A schema is parsed to see that it is JSON, and then goes on as the text that it came as. Names of
tools follow OpenAI's rule, the strictest among the servers. What OpenAI's API refuses without
tools is refused here for every engine; a `tool_choice` of AUTO or NONE without tools says what is
so anyway, and goes no further.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from google.protobuf.struct_pb2 import Struct, Value

from ruvd import checks, convert
from ruvd.checks import Checker
from ruvd.options import (
    RESERVED_FIELDS,
    CompletionOptions,
    ResponseFormat,
    Tool,
    ToolChoiceMode,
)
from ruvd.v1 import session_service_pb2 as pb

_MAX_STOPS = 16
_MAX_BIASES = 300
_MAX_TOOLS = 128
_MAX_DEPTH = 32
_MAX_TEMPERATURE = 2.0
_MAX_PENALTY = 2.0
_MAX_BIAS = 100.0
# Beyond it a double has no neighbours one apart: a whole number there is a large one, not a count.
_MAX_WHOLE = 2.0**53
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FORMAT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def options(check: Checker, asked: pb.CompletionOptions) -> CompletionOptions:
    """How to generate."""
    if not asked.ListFields():
        return CompletionOptions()
    temperature, top_p = _optional(asked, "temperature"), _optional(asked, "top_p")
    if temperature is not None:
        check.check(0 <= temperature <= _MAX_TEMPERATURE, "options.temperature", "must be 0 to 2")
    if top_p is not None:
        check.check(0 < top_p <= 1, "options.top_p", "must be above 0 and at most 1")
    if asked.HasField("max_tokens"):
        check.check(asked.max_tokens > 0, "options.max_tokens", "must be more than 0")
    for name in ("frequency_penalty", "presence_penalty"):
        fits = -_MAX_PENALTY <= getattr(asked, name) <= _MAX_PENALTY  # 0 if it is unset
        check.check(fits, f"options.{name}", "must be -2 to 2")
    checks.model_name(check, "options.model", asked.model)
    check.check(len(asked.stop) <= _MAX_STOPS, "options.stop", f"more than {_MAX_STOPS}")
    for index, stop in enumerate(asked.stop):
        check.check(bool(stop), f"options.stop[{index}]", "must not be empty")
    tools = _tools(check, asked.tools)
    if asked.HasField("parallel_tool_calls"):
        check.check(bool(tools), "options.parallel_tool_calls", "needs tools")
    return CompletionOptions(
        model=asked.model,
        temperature=temperature,
        top_p=top_p,
        max_tokens=_optional(asked, "max_tokens"),
        stop=tuple(asked.stop),
        seed=_optional(asked, "seed"),
        bypass_cache=asked.bypass_cache,
        frequency_penalty=_optional(asked, "frequency_penalty"),
        presence_penalty=_optional(asked, "presence_penalty"),
        logit_bias=_logit_bias(check, asked.logit_bias) if asked.logit_bias else {},
        tools=tools,
        tool_choice=_tool_choice(check, asked, tools),
        parallel_tool_calls=_optional(asked, "parallel_tool_calls"),
        response_format=_response_format(check, asked),
        extra_body=_extra_body(check, asked.extra_body) if asked.HasField("extra_body") else {},
    )


def _optional(asked: pb.CompletionOptions | pb.Tool | pb.ResponseFormat, name: str) -> Any:
    """The value of an optional field; None if it is unset."""
    return getattr(asked, name) if asked.HasField(name) else None  # type: ignore[arg-type]


def _logit_bias(check: Checker, asked: Mapping[int, float]) -> dict[int, float]:
    field = "options.logit_bias"
    check.check(len(asked) <= _MAX_BIASES, field, f"more than {_MAX_BIASES}")
    for token, bias in sorted(asked.items()):
        check.check(token >= 0, f"{field}[{token}]", "a token's id must not be negative")
        check.check(-_MAX_BIAS <= bias <= _MAX_BIAS, f"{field}[{token}]", "must be -100 to 100")
    return dict(sorted(asked.items()))


def _tools(check: Checker, asked: Sequence[pb.Tool]) -> tuple[Tool, ...]:
    check.check(len(asked) <= _MAX_TOOLS, "options.tools", f"more than {_MAX_TOOLS}")
    names: set[str] = set()
    for index, tool in enumerate(asked[:_MAX_TOOLS]):
        field = f"options.tools[{index}]"
        well_formed = _TOOL_NAME.fullmatch(tool.name) is not None
        rule = "must be 1 to 64 characters of A-Z a-z 0-9 _ . -"
        check.check(well_formed, f"{field}.name", rule)
        check.check(tool.name not in names, f"{field}.name", "is another tool's already")
        names.add(tool.name)
        checks.text(check, f"{field}.description", tool.description)
        if tool.parameters:
            _schema(check, f"{field}.parameters", tool.parameters)
    return tuple(
        Tool(tool.name, tool.description, tool.parameters, _optional(tool, "strict"))
        for tool in asked
    )


def _tool_choice(
    check: Checker, options: pb.CompletionOptions, tools: Sequence[Tool]
) -> ToolChoiceMode | str | None:
    if not options.HasField("tool_choice"):
        return None
    asked = options.tool_choice
    if asked.WhichOneof("choice") == "function":
        known = any(tool.name == asked.function for tool in tools)
        check.check(known, "options.tool_choice.function", "must be the name of one of tools")
        return asked.function
    mode = convert.TOOL_CHOICE_MODES.get(asked.mode)
    field = "options.tool_choice.mode"
    check.check(mode is not None, field, "must be AUTO, NONE or REQUIRED")
    needed = mode is ToolChoiceMode.REQUIRED
    check.check(bool(tools) or not needed, field, "REQUIRED needs tools")
    return mode if tools else None


def _response_format(check: Checker, options: pb.CompletionOptions) -> ResponseFormat | None:
    if not options.HasField("response_format"):
        return None
    asked = options.response_format
    _schema(check, "options.response_format.json_schema", asked.json_schema)
    if asked.name:
        well_formed = _FORMAT_NAME.fullmatch(asked.name) is not None
        rule = "must be 1 to 64 characters of A-Z a-z 0-9 _ -"
        check.check(well_formed, "options.response_format.name", rule)
    return ResponseFormat(asked.json_schema, asked.name, _optional(asked, "strict"))


def _schema(check: Checker, field: str, text: str) -> None:
    """Check that a text is a JSON object, as every engine will have to read it."""
    if len(text.encode()) > check.limits.max_message_bytes:
        checks.text(check, field, text)
        return
    try:
        parsed = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        check.refuse(field, f"is nested deeper than {_MAX_DEPTH}")
    except ValueError as error:
        check.refuse(field, f"must be a JSON Schema: {error}")
    else:
        check.check(isinstance(parsed, dict), field, "must be a JSON Schema: an object")
        check.check(_is_shallow(parsed), field, f"is nested deeper than {_MAX_DEPTH}")


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal names they take."""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return named


def _is_shallow(parsed: Any) -> bool:
    """Whether nothing in it is nested deeper than what every reader of JSON takes."""
    level = [parsed]
    for _ in range(_MAX_DEPTH):
        level = [
            each
            for value in level
            if isinstance(value, dict | list)
            for each in (value.values() if isinstance(value, dict) else value)
        ]
    return not level


def _extra_body(check: Checker, asked: Struct) -> dict[str, Any]:
    field = "options.extra_body"
    for name in sorted(RESERVED_FIELDS & asked.fields.keys()):
        text = "is not for extra_body: this API has a field for it, or the daemon decides it"
        check.refuse(f"{field}.{name}", text)
    return {
        name: _plain(check, f"{field}.{name}", v, 1) for name, v in sorted(asked.fields.items())
    }


def _plain(check: Checker, field: str, value: Value, depth: int) -> Any:
    """A Struct's value as Python's: whole numbers as int, names in one order for one request."""
    if depth > _MAX_DEPTH:
        check.refuse(field, f"is nested deeper than {_MAX_DEPTH}")
        return None
    match value.WhichOneof("kind"):
        case "struct_value":
            fields = sorted(value.struct_value.fields.items())
            return {name: _plain(check, field, each, depth + 1) for name, each in fields}
        case "list_value":
            return [_plain(check, field, each, depth + 1) for each in value.list_value.values]
        case "number_value":
            number = value.number_value
            check.check(math.isfinite(number), field, "has a number that JSON does not have")
            return int(number) if number.is_integer() and abs(number) <= _MAX_WHOLE else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case _:
            check.refuse(field, "has a value that is not set; null is one")
            return None
