"""Options of a request: every wrong field is named, the rest comes through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.errors import InvalidRequest
from ruvd.core.model import Message, Role, ToolCall
from ruvd.core.options import CompletionOptions, ResponseFormat, Tool, ToolChoiceMode
from ruvd.rpc import option_validation
from ruvd.rpc.requests import append_messages, complete
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

HI = pb.Message(role=pb.ROLE_USER, content="hi")
SCHEMA = '{"type":  "object", "properties": {"b": {}, "a": {"type": "number"}}}'


def parsed(*messages: pb.Message, **options: Any) -> CompletionRequest:
    request = pb.CompleteRequest(
        session_id="s", messages=messages or [HI], options=pb.CompletionOptions(**options)
    )
    return complete(request, RequestLimits())


def wrong(*messages: pb.Message, **options: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as refused:
        parsed(*messages, **options)
    return [violation.field for violation in refused.value.violations]


def tool(name: str = "f", **fields: Any) -> pb.Tool:
    return pb.Tool(name=name, **fields)


def choice(mode: pb.ToolChoiceMode.ValueType) -> pb.ToolChoice:
    return pb.ToolChoice(mode=mode)


def test_what_is_asked_comes_through_and_a_schema_keeps_its_bytes() -> None:
    body = struct_pb2.Struct()
    body.update(
        {"top_k": 40, "min_p": 0.5, "chat_template_kwargs": {"z": [1, None, True], "a": ""}}
    )
    options = parsed(
        model="m",
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={7: -100, 3: 1.5},
        tools=[tool(description="d", parameters=SCHEMA, strict=True), tool("g")],
        tool_choice=pb.ToolChoice(function="g"),
        parallel_tool_calls=False,
        response_format=pb.ResponseFormat(json_schema=SCHEMA, name="n", strict=False),
        extra_body=body,
    ).options
    assert options == CompletionOptions(
        model="m",
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={3: 1.5, 7: -100},
        tools=(Tool("f", "d", SCHEMA, True), Tool("g")),  # noqa: FBT003
        tool_choice="g",
        parallel_tool_calls=False,
        response_format=ResponseFormat(SCHEMA, "n", False),  # noqa: FBT003
        extra_body={
            "chat_template_kwargs": {"a": "", "z": [1, None, True]},
            "min_p": 0.5,
            "top_k": 40,
        },
    )
    assert isinstance(options.extra_body["top_k"], int)
    assert list(options.extra_body["chat_template_kwargs"]) == ["a", "z"]


def test_what_is_not_asked_is_unset() -> None:
    assert parsed().options == CompletionOptions()
    assert parsed(tool_choice=choice(pb.TOOL_CHOICE_MODE_AUTO)).options == CompletionOptions()
    asked = parsed(tools=[tool()], tool_choice=choice(pb.TOOL_CHOICE_MODE_NONE)).options
    assert asked.tool_choice is ToolChoiceMode.NONE


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (
            {"frequency_penalty": 2.1, "presence_penalty": -2.1},
            ["frequency_penalty", "presence_penalty"],
        ),
        ({"frequency_penalty": float("nan")}, ["frequency_penalty"]),
        ({"logit_bias": {-1: 1, 5: 101}}, ["logit_bias[-1]", "logit_bias[5]"]),
        ({"logit_bias": dict.fromkeys(range(301), 1)}, ["logit_bias"]),
        ({"tools": [tool(str(n)) for n in range(129)]}, ["tools"]),
        ({"tools": [tool(), tool(), tool("no spaces")]}, ["tools[1].name", "tools[2].name"]),
        ({"tools": [tool(parameters="{")]}, ["tools[0].parameters"]),
        ({"tools": [tool(parameters="[]")]}, ["tools[0].parameters"]),
        ({"tools": [tool(parameters='{"a": NaN}')]}, ["tools[0].parameters"]),
        ({"tools": [tool(parameters='{"a": 1, "a": 2}')]}, ["tools[0].parameters"]),
        ({"tools": [tool(parameters='{"a":' * 5000 + "1" + "}" * 5000)]}, ["tools[0].parameters"]),
        ({"tools": [tool(parameters='{"a":' * 40 + "1" + "}" * 40)]}, ["tools[0].parameters"]),
        ({"tool_choice": choice(pb.TOOL_CHOICE_MODE_REQUIRED)}, ["tool_choice.mode"]),
        ({"tool_choice": pb.ToolChoice()}, ["tool_choice.mode"]),
        ({"tool_choice": choice(9)}, ["tool_choice.mode"]),  # type: ignore[arg-type]
        (
            {"tools": [tool()], "tool_choice": pb.ToolChoice(function="g")},
            ["tool_choice.function"],
        ),
        ({"parallel_tool_calls": True}, ["parallel_tool_calls"]),
        ({"response_format": pb.ResponseFormat()}, ["response_format.json_schema"]),
        (
            {"response_format": pb.ResponseFormat(json_object=True, json_schema="{}")},
            ["response_format.json_object"],
        ),
        (
            {"response_format": pb.ResponseFormat(json_object=True, strict=False)},
            ["response_format.json_object"],
        ),
        (
            {"response_format": pb.ResponseFormat(json_schema="{}", name="no.dots")},
            ["response_format.name"],
        ),
    ],
)
def test_every_wrong_option_is_named(options: dict[str, Any], fields: list[str]) -> None:
    assert wrong(**options) == [f"options.{field}" for field in fields]


@pytest.mark.parametrize(
    "name", ["model", "messages", "stream", "temperature", "cache_salt", "n", "n_cmpl"]
)
def test_what_is_not_the_callers_cannot_come_by_extra_body(name: str) -> None:
    body = struct_pb2.Struct()
    body.update({name: "x", "top_k": 1})
    assert wrong(extra_body=body) == [f"options.extra_body.{name}"]


def test_numbers_that_json_does_not_have_are_refused_in_extra_body() -> None:
    body = struct_pb2.Struct()
    body.update({"a": [float("inf")], "b": float("nan")})
    body.fields["c"].CopyFrom(struct_pb2.Value())
    assert wrong(extra_body=body) == [f"options.extra_body.{name}" for name in "abc"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text("xyz", min_size=1), JSON, max_size=4))
def test_extra_body_is_the_json_that_it_was(value: dict[str, Any]) -> None:
    body = struct_pb2.Struct()
    body.update(value)
    came = parsed(extra_body=body).options.extra_body
    assert json.dumps(came, sort_keys=True) == json.dumps(value, sort_keys=True)


CALL = pb.ToolCall(id="c", name="f", arguments="{not json")
ASKS = pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[CALL], reasoning="hm")
RESULT = pb.Message(role=pb.ROLE_TOOL, tool_call_id="c")


def test_messages_of_tools_come_through_as_they_are() -> None:
    assert tuple(parsed(HI, ASKS, RESULT).messages) == (
        Message(Role.USER, "hi"),
        Message(Role.ASSISTANT, "", (ToolCall("c", "f", "{not json"),), reasoning="hm"),
        Message(Role.TOOL, "", tool_call_id="c"),
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Message(role=pb.ROLE_USER, content="x", tool_calls=[CALL]), "tool_calls"),
        (pb.Message(role=pb.ROLE_USER, content="x", tool_call_id="c"), "tool_call_id"),
        (pb.Message(role=pb.ROLE_USER, content="x", reasoning="hm"), "reasoning"),
        (pb.Message(role=pb.ROLE_USER), "content"),
        (pb.Message(role=pb.ROLE_TOOL, content="x"), "tool_call_id"),
        (pb.Message(role=pb.ROLE_TOOL, tool_call_id="x" * 257), "tool_call_id"),
        (pb.Message(role=pb.ROLE_TOOL, tool_call_id="c", reasoning="hm"), "reasoning"),
        (
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="c")]),
            "tool_calls[0].name",
        ),
        (
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(name="f")]),
            "tool_calls[0].id",
        ),
        (pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[CALL, CALL]), "tool_calls[1].id"),
    ],
)
def test_every_wrong_field_of_a_message_is_named(message: pb.Message, field: str) -> None:
    assert wrong(message, HI) == [f"messages[0].{field}"]


def test_a_turn_ends_with_what_is_to_be_answered() -> None:
    assert wrong(HI, ASKS) == ["messages[1].role"]


def test_everything_in_a_message_counts_against_its_limit() -> None:
    large = pb.ToolCall(id="c", name="f", arguments="x" * 60)
    message = pb.Message(role=pb.ROLE_ASSISTANT, content="y" * 60, tool_calls=[large])
    request = pb.AppendMessagesRequest(session_id="s", messages=[message])
    with pytest.raises(InvalidRequest) as refused:
        append_messages(request, RequestLimits(max_message_bytes=100))
    assert [violation.field for violation in refused.value.violations] == ["messages[0]"]


def test_every_field_of_the_proto_has_a_rule() -> None:
    assert set(pb.CompletionOptions.DESCRIPTOR.fields_by_name) == set(option_validation._RULES)
