"""Conversations in OpenAI's format, as many programs write it: what is kept, and what is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruvd_client import Message, Role
from ruvd_client.v1.session_service_pb2 import ToolCall

from ruvd.cli.openai_conversation import Conversation, read_conversation
from ruvd.cli.openai_messages import LineRefused, Reading

USER = {"role": "user", "content": "hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://x"}}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning",
    "reasoning_content", "refusal", "weight", "cache_control",
)  # fmt: skip
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])


def read(*messages: Any, reading: Reading | None = None) -> Conversation:
    return read_conversation(messages, "messages", reading or Reading())


def call(id_: Any = "1", arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"id": id_, "type": "function", "function": function, **fields}


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def result(id_: str, content: str | None = "x") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "developer", "content": "Be kind."}, USER], "Be kind."),
        ([{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}], "A\n\nB"),
        ([{"role": "system", "content": [{"type": "text", "text": "A"}, "B"]}, USER], "AB"),
        ([{"role": "system", "content": None}, USER], ""),
    ],
)
def test_system_messages_at_the_beginning_are_the_system_prompt(
    messages: list[Any], prompt: str
) -> None:
    assert read(*messages).system_prompt == prompt


@pytest.mark.parametrize(
    ("given", "content", "reasoning"),
    [
        ({"content": None}, "", ""),
        ({}, "", ""),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}]},
            "ab",
            "",
        ),
        ({"content": ["a", "b"]}, "ab", ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot.", ""),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No.", ""),
        ({"content": "a", "reasoning": "Hm."}, "a", "Hm."),
        ({"content": "a", "reasoning_content": "Hm.", "reasoning": "Hm."}, "a", "Hm."),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, "a"]},
            "a",
            "Hm.",
        ),
        ({"content": "a", "tool_calls": [], "function_call": None, "annotations": []}, "a", ""),
    ],
)
def test_an_answer_keeps_its_text_and_its_reasoning(
    given: dict[str, Any], content: str, reasoning: str
) -> None:
    (message,) = read({"role": "assistant", **given}).messages
    assert message == Message(role=Role.ROLE_ASSISTANT, content=content, reasoning=reasoning)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a": 1', '{"a": 1'),
        ({"a": [1, "ä"]}, '{"a": [1, "ä"]}'),
        (None, ""),
        ("", ""),
        ([1], "[1]"),
    ],
)
def test_arguments_may_be_an_object(arguments: Any, text: str) -> None:
    (message,) = read(calling(call(arguments=arguments, index=0))).messages
    assert list(message.tool_calls) == [ToolCall(id="1", name="f", arguments=text)]


@pytest.mark.parametrize(
    "ids",
    [
        ["a", "b"],
        ["x:3", "x:3"],
        ["", ""],
        [None, None],
        ["a" * 2048, "a" * 2048],
        ["call_1", ""],
        ["call_2", "call_2", None],
    ],
)
def test_calls_are_kept_apart_and_their_results_come_in_order(ids: list[str | None]) -> None:
    calls = [call(each, {"n": n}, index=0) for n, each in enumerate(ids)]
    results = [
        {"role": "tool", "content": str(n)} | ({"tool_call_id": each} if each else {})
        for n, each in enumerate(ids)
    ]
    asking, *answers = read(USER, calling(*calls), *results).messages[1:]
    found = [each.id for each in asking.tool_calls]
    assert len(set(found)) == len(ids)
    assert all(0 < len(each.encode()) <= 256 for each in found)
    assert [each.tool_call_id for each in answers] == found
    assert [each.content for each in answers] == [str(n) for n in range(len(ids))]


def test_the_legacy_call_of_a_function_is_a_tool_call() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    twice = [
        USER,
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "f", "content": "x"},
    ] * 2
    messages = read(*twice).messages
    first, second = messages[1].tool_calls[0], messages[4].tool_calls[0]
    assert (first.name, first.arguments) == ("f", '{"a": 1}')
    assert first.id != second.id
    assert [messages[2].tool_call_id, messages[5].tool_call_id] == [first.id, second.id]
    assert messages[2].role == Role.ROLE_TOOL


def test_a_result_may_have_no_content_and_the_name_of_its_call() -> None:
    message = read(calling(call()), {**result("1", None), "name": "f"}).messages[1]
    assert message == Message(role=Role.ROLE_TOOL, tool_call_id="1")


@pytest.mark.parametrize(
    ("content", "text"), [({"warm": True}, '{"warm": true}'), (7, "7"), (["a", "b"], "ab")]
)
def test_a_result_may_be_any_json(content: Any, text: str) -> None:
    message = read(calling(call()), {**result("1"), "content": content}).messages[1]
    assert message == Message(role=Role.ROLE_TOOL, tool_call_id="1", content=text)


@pytest.mark.parametrize(
    ("messages", "kept", "left_out"),
    [
        ([{**USER, "name": "Ada"}], 1, ["messages[0].name: is not supported by ruvd"]),
        (
            [USER, {"role": "system", "content": "B"}, USER],
            2,
            ["messages[1].role: only the first message may be a system message"],
        ),
        (
            [
                {
                    **USER,
                    "content": [IMAGE, {"type": "text", "text": "a", "cache_control": {"a": 1}}],
                }
            ],
            1,
            [
                "messages[0].content[0].type: must be text, not 'image_url'",
                "messages[0].content[1].cache_control: is not supported by ruvd",
            ],
        ),
        (
            [{**USER, "content": [IMAGE]}, USER],
            1,
            [
                "messages[0].content[0].type: must be text, not 'image_url'",
                "messages[0].content: must be a string that is not empty",
            ],
        ),
        ([{"role": "critic", "content": "x"}, USER], 1, ["messages[0].role: must be system"]),
        (
            [USER, calling({"id": "1", "type": "custom", "custom": {}}), result("1")],
            2,
            [
                "messages[1].tool_calls[0].type: must be function, not 'custom'",
                "messages[2].tool_call_id: answers no open tool call of this conversation",
            ],
        ),
        (
            [USER, {"role": "assistant", "content": "x", "weight": 1, "audio": {"id": "a"}}],
            2,
            [
                "messages[1].weight: is not supported by ruvd",
                "messages[1].audio: is not supported by ruvd",
            ],
        ),
        (
            [{"role": "assistant", "content": "x", "reasoning": ["Hm."]}],
            1,
            ["messages[0].reasoning: must be a string"],
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_or_left_out_by_name(
    messages: list[Any], kept: int, left_out: list[str]
) -> None:
    with pytest.raises(LineRefused) as refused:
        read(*messages)
    assert str(refused.value).startswith(left_out[0])
    reading = Reading(lenient=True)
    assert len(read(*messages, reading=reading).messages) == kept
    assert len(reading.left_out) == len(left_out)
    for named, expected in zip(reading.left_out, left_out, strict=True):
        assert named.startswith(expected)


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), ANY) | ANY, max_size=6), ROLES)
def test_a_lenient_reading_takes_every_conversation(messages: list[Any], role: str) -> None:
    with_role = [each | {"role": role} if isinstance(each, dict) else each for each in messages]
    for conversation in (messages, with_role):
        reading = Reading(lenient=True)
        for message in read(*conversation, reading=reading).messages:
            assert Message.FromString(message.SerializeToString()) == message
        json.dumps(reading.left_out)
