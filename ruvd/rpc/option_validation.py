"""Validation of CompletionOptions, naming every wrong field by its path.

A schema is parsed to check that it is JSON, and is then passed on as the original text. Tool names
follow OpenAI's rule, the strictest among the servers. Options that OpenAI's API refuses without
tools are refused here for every engine. A `tool_choice` of AUTO or NONE without tools has no effect
and is dropped.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import Struct, Value

from ruvd.core.completions import allowances
from ruvd.core.options import (
    RESERVED_FIELDS,
    CompletionOptions,
    ResponseFormat,
    Tool,
    ToolChoiceMode,
)
from ruvd.core.tenant_limits import UNLIMITED
from ruvd.rpc import convert, schema_validation, validation
from ruvd.rpc.identity import caller
from ruvd.rpc.schema_validation import MAX_DEPTH
from ruvd.rpc.validation import Checker
from ruvd.v1 import session_service_pb2 as pb

_MAX_STOPS = 16
_MAX_BIASES = 300
_MAX_TOOLS = 128
MAX_EXTRA_VALUES = 5000
# llama-server looks each one up in its vocabulary: 4,000 stop all its answers for more than 20 s.
_MAX_SEQUENCE_BREAKERS = 64
_MAX_BIAS = 100.0
# A double above this cannot represent every whole number, so it is not a count.
_MAX_WHOLE = 2.0**53
_Rule: TypeAlias = Callable[[Checker, pb.CompletionOptions], Any]
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FORMAT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def options(check: Checker, asked: pb.CompletionOptions) -> CompletionOptions:
    """Converts the options. Only fields that are set cost time, and most callers set few."""
    given = [descriptor.name for descriptor, _ in asked.ListFields()]
    converted = CompletionOptions(**{name: _RULES[name](check, asked) for name in given})
    limits = check.limits.limits_of(caller.tenant())
    if limits is not UNLIMITED:
        for excess in allowances.excesses(converted, limits):
            check.refuse(excess.field, excess.description)
        check.deny(allowances.denials(converted, limits))
    return converted


def _model(check: Checker, asked: pb.CompletionOptions) -> str:
    validation.model_name(check, "options.model", asked.model)
    return asked.model


def _field(name: str, fits: Callable[[Any], bool], rule: str) -> _Rule:
    """Returns the rule of a field whose value must fit by itself."""

    def check_field(check: Checker, asked: pb.CompletionOptions) -> Any:
        value = getattr(asked, name)
        check.check(fits(value), f"options.{name}", rule)
        return value

    return check_field


def _penalty(name: str) -> _Rule:
    return _field(name, lambda penalty: -2 <= penalty <= 2, "must be -2 to 2")


def _stop(check: Checker, asked: pb.CompletionOptions) -> tuple[str, ...]:
    check.check(
        len(asked.stop) <= _MAX_STOPS, "options.stop", f"has more than {_MAX_STOPS} strings"
    )
    for index, stop in enumerate(asked.stop[:_MAX_STOPS]):
        check.check(bool(stop), f"options.stop[{index}]", "must not be empty")
    return tuple(asked.stop[:_MAX_STOPS])


def _parallel_tool_calls(check: Checker, asked: pb.CompletionOptions) -> bool:
    check.check(bool(asked.tools), "options.parallel_tool_calls", "needs tools")
    return asked.parallel_tool_calls


def _logit_bias(check: Checker, asked: pb.CompletionOptions) -> dict[int, float]:
    field, biases = "options.logit_bias", dict(sorted(asked.logit_bias.items()))
    check.check(len(biases) <= _MAX_BIASES, field, f"has more than {_MAX_BIASES} entries")
    for token, bias in islice(biases.items(), _MAX_BIASES):
        check.check(token >= 0, f"{field}[{token}]", "a token's id must not be negative")
        check.check(-_MAX_BIAS <= bias <= _MAX_BIAS, f"{field}[{token}]", "must be -100 to 100")
    return biases


def _tools(check: Checker, asked: pb.CompletionOptions) -> tuple[Tool, ...]:
    check.check(
        len(asked.tools) <= _MAX_TOOLS, "options.tools", f"has more than {_MAX_TOOLS} tools"
    )
    names: set[str] = set()
    values = 0
    for index, tool in enumerate(asked.tools[:_MAX_TOOLS]):
        field = f"options.tools[{index}]"
        well_formed = _TOOL_NAME.fullmatch(tool.name) is not None
        rule = "must be 1 to 64 characters of A-Z a-z 0-9 _ . -"
        check.check(well_formed, f"{field}.name", rule)
        check.check(tool.name not in names, f"{field}.name", "is the name of another tool")
        names.add(tool.name)
        validation.text(check, f"{field}.description", tool.description)
        if tool.parameters:
            values += schema_validation.text(check, f"{field}.parameters", tool.parameters)
    schema_validation.together(check, "options.tools", values)
    return tuple(
        Tool(
            tool.name,
            tool.description,
            tool.parameters,
            tool.strict if tool.HasField("strict") else None,
        )
        for tool in asked.tools[:_MAX_TOOLS]
    )


def _tool_choice(check: Checker, asked: pb.CompletionOptions) -> ToolChoiceMode | str | None:
    choice, tools = asked.tool_choice, asked.tools
    if choice.WhichOneof("choice") == "function":
        known = any(tool.name == choice.function for tool in tools)
        check.check(known, "options.tool_choice.function", "must be the name of one of tools")
        return choice.function
    mode = convert.TOOL_CHOICE_MODES.get(choice.mode)
    field = "options.tool_choice.mode"
    check.check(mode is not None, field, "must be AUTO, NONE or REQUIRED")
    needed = mode is ToolChoiceMode.REQUIRED
    check.check(bool(tools) or not needed, field, "REQUIRED needs tools")
    return mode if tools else None


def _response_format(check: Checker, asked: pb.CompletionOptions) -> ResponseFormat:
    form = asked.response_format
    if form.json_object:
        alone = not (form.json_schema or form.name or form.HasField("strict"))
        text = "must not come with json_schema, name or strict"
        check.check(alone, "options.response_format.json_object", text)
        return ResponseFormat(json_object=True)
    schema_validation.text(check, "options.response_format.json_schema", form.json_schema)
    if form.name:
        well_formed = _FORMAT_NAME.fullmatch(form.name) is not None
        rule = "must be 1 to 64 characters of A-Z a-z 0-9 _ -"
        check.check(well_formed, "options.response_format.name", rule)
    strict = form.strict if form.HasField("strict") else None
    return ResponseFormat(form.json_schema, form.name, strict)


def _extra_body(check: Checker, asked: pb.CompletionOptions) -> dict[str, Any]:
    field, fields = "options.extra_body", asked.extra_body.fields
    if sum(1 for _ in islice(_values(asked.extra_body), MAX_EXTRA_VALUES + 1)) > MAX_EXTRA_VALUES:
        check.refuse(field, f"has more than {MAX_EXTRA_VALUES} values")
        return {}
    for name in sorted(RESERVED_FIELDS & fields.keys()):
        text = "is not for extra_body: this API has a field for it, or the daemon decides it"
        check.refuse(f"{field}.{name}", text)
    body = {
        name: _plain(check, f"{field}.{name}", value, 1) for name, value in sorted(fields.items())
    }
    for name, check_value in _EXTRA_RULES.items():
        if name in body:
            check_value(check, f"{field}.{name}", body[name])
    return body


def _sequence_breakers(check: Checker, field: str, breakers: Any) -> None:
    fits = not isinstance(breakers, list) or len(breakers) <= _MAX_SEQUENCE_BREAKERS
    check.check(fits, field, f"has more than {_MAX_SEQUENCE_BREAKERS} values")


def _values(struct: Struct) -> Iterator[Value]:
    pending: list[Iterable[Value]] = [struct.fields.values()]
    while pending:
        for value in pending.pop():
            yield value
            if value.HasField("struct_value"):
                pending.append(value.struct_value.fields.values())
            elif value.HasField("list_value"):
                pending.append(value.list_value.values)


def _plain(check: Checker, field: str, value: Value, depth: int) -> Any:
    """Converts a Struct's value to Python: whole numbers to int, names in sorted order."""
    if depth > MAX_DEPTH:
        check.refuse(field, f"is nested deeper than {MAX_DEPTH}")
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
            check.refuse(field, "has a value that is not set; use null for no value")
            return None


# The fields of llama-server's own that can take much of its memory or time.
_EXTRA_RULES: dict[str, Callable[[Checker, str, Any], object]] = {
    "json_schema": schema_validation.schema,
    "grammar": schema_validation.grammar,
    "grammar_triggers": schema_validation.triggers,
    "dry_sequence_breakers": _sequence_breakers,
}
# The rule of each field, which validates and converts it if it is set.
_RULES: dict[str, _Rule] = {
    "model": _model,
    "temperature": _field("temperature", lambda value: 0 <= value <= 2, "must be 0 to 2"),
    "top_p": _field("top_p", lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "max_tokens": _field("max_tokens", lambda value: value > 0, "must be more than 0"),
    "stop": _stop,
    "seed": lambda _, asked: asked.seed,
    "bypass_cache": lambda _, asked: asked.bypass_cache,
    "frequency_penalty": _penalty("frequency_penalty"),
    "presence_penalty": _penalty("presence_penalty"),
    "logit_bias": _logit_bias,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _parallel_tool_calls,
    "response_format": _response_format,
    "extra_body": _extra_body,
}
