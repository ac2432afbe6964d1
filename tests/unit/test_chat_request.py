"""The encoding of a request's body."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ruvd.core.errors import EngineRejected
from ruvd.core.model import Message, Role, ToolCall
from ruvd.core.options import CompletionOptions, ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.chat.request import encode

MESSAGES = (
    Message(Role.SYSTEM, "Be brief."),
    Message(Role.USER, "Weather?"),
    Message(Role.ASSISTANT, "", (ToolCall("c1", "f", '{ "x":1}'),), reasoning="hm"),
    Message(Role.TOOL, "rain", tool_call_id="c1"),
    Message(Role.ASSISTANT, "Rain.", reasoning="hm"),
    Message(Role.USER, "Thanks"),
)


def raw(extra: dict[str, Any] | None = None, **options: Any) -> bytes:
    request = EngineRequest(MESSAGES, CompletionOptions(**options))
    return encode(request, model="m", extra=extra or {})


def sent(**options: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(raw(**options))
    return decoded


def test_messages_keep_their_order_and_reasoning_is_not_sent() -> None:
    assert sent()["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{ "x":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Thanks"},
    ]


def test_what_is_not_asked_for_is_not_sent() -> None:
    usage = {"include_usage": True}
    assert sent() | {"messages": []} == {
        "model": "m",
        "messages": [],
        "stream": True,
        "stream_options": usage,
    }


def test_every_option_is_in_the_body() -> None:
    body = sent(
        temperature=0.0,
        top_p=0.5,
        max_tokens=7,
        stop=("a", "b"),
        seed=0,
        frequency_penalty=0.0,
        presence_penalty=-1.5,
        logit_bias={9: -100.0, 2: 1.0},
        parallel_tool_calls=False,
        response_format=ResponseFormat('{"type":"object"}', "thing", strict=True),
    )
    assert {key: body[key] for key in list(body)[2:-2]} == {
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": {"type": "object"}, "strict": True},
        },
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 7,
        "stop": ["a", "b"],
        "seed": 0,
        "frequency_penalty": 0.0,
        "presence_penalty": -1.5,
        "logit_bias": {"2": 1.0, "9": -100.0},
    }


def test_any_json_object_is_asked_for_as_openai_does() -> None:
    body = sent(response_format=ResponseFormat(json_object=True))
    assert body["response_format"] == {"type": "json_object"}


def test_a_schema_goes_out_byte_for_byte() -> None:
    odd = '{ "type" :"object",\n "properties":{"b":{},"a":{"const":1.0}} }'
    tools = (Tool("f", "Does it.", odd), Tool("g", strict=False))
    body = raw(tools=tools, response_format=ResponseFormat(odd))
    assert body.count(odd.encode()) == 2
    decoded = msgspec.json.decode(body)
    assert decoded["tools"][1] == {"type": "function", "function": {"name": "g", "strict": False}}
    assert decoded["response_format"]["json_schema"]["name"]


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        (ToolChoiceMode.AUTO, "auto"),
        (ToolChoiceMode.NONE, "none"),
        (ToolChoiceMode.REQUIRED, "required"),
        ("f", {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choice_is_a_rule_or_a_function(choice: ToolChoiceMode | str, value: object) -> None:
    assert sent(tools=(Tool("f"),), tool_choice=choice)["tool_choice"] == value


def test_the_same_request_has_the_same_bytes_whatever_order_its_maps_are_in() -> None:
    assert raw(logit_bias={1: 1.0, 2: 2.0}) == raw(logit_bias={2: 2.0, 1: 1.0})
    one = raw(extra_body={"top_k": 1, "more": {"b": 1, "a": 2}})
    assert one == raw(extra_body={"more": {"a": 2, "b": 1}, "top_k": 1})


@pytest.mark.parametrize("name", ["messages", "model", "stream", "temperature", "cache_salt", "n"])
def test_extra_body_changes_nothing_that_is_decided_elsewhere(name: str) -> None:
    with pytest.raises(EngineRejected, match=name):
        raw(temperature=1.0, extra_body={name: 1, "top_k": 3})
    assert sent(extra_body={"top_k": 3, "nested": {"a": [1]}})["nested"] == {"a": [1]}
