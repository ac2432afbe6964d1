"""Sessions as lines of JSON: their conversion, and the refusal of invalid lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ruvd_client import ContextWindow, Message, Role, Session
from ruvd_client.v1.session_service_pb2 import RENDERING_MESSAGES, ToolCall
from tool_conversation import TOOL_EXCHANGE, proto_of

from ruvd.cli.session_lines import LineRefused, from_line, to_line

USER = {"role": "user", "content": "hello"}
CALL: dict[str, Any] = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}


def line(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"messages": list(messages), **fields}).encode()


def line_with_calls(tool_calls: Any) -> bytes:
    """Returns a line that ends with an assistant's message with only these tool calls."""
    return line(USER, {"role": "assistant", "content": None, "tool_calls": tool_calls})


def test_empty_fields_of_openai_are_accepted() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "reasoning_content": None,
        "function_call": None,
    }
    conversation = from_line(line(USER, answer, tools=[], metadata=None))
    assert [message.content for message in conversation.messages] == ["hello", "hi"]
    assert conversation.arguments == {}


def test_the_first_system_message_is_the_system_prompt() -> None:
    conversation = from_line(line({"role": "system", "content": "Be kind."}, USER))
    assert conversation.arguments == {"system_prompt": "Be kind."}
    assert conversation.messages == (Message(role=Role.ROLE_USER, content="hello"),)


def test_metadata_becomes_the_sessions_settings() -> None:
    metadata = {
        "session_id": "a",
        "labels": {"k": "v"},
        "model": "tiny",
        "idle_timeout_seconds": 60,
        "context_window": {"keep_exchanges": 1, "max_exchanges": 0, "rendering": "messages"},
        "create_time": "2026-01-02T03:04:05.678Z",
    }
    window = ContextWindow(keep_exchanges=1, max_exchanges=0, rendering=RENDERING_MESSAGES)
    assert from_line(line(metadata=metadata)).arguments == {
        "session_id": "a",
        "labels": {"k": "v"},
        "model": "tiny",
        "idle_timeout_seconds": 60.0,
        "context_window": window,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "the line: must be an object"),
        (b"{}", "messages: must be a list"),
        (line("hello"), "messages[0]: must be an object"),
        (
            line({"content": "x"}),
            "messages[0].role: must be system, user, assistant or tool, not None",
        ),
        (
            line({"role": "function", "name": "f", "content": "x"}),
            "messages[0].name: answers no open tool call of this conversation",
        ),
        (line({"role": "function", "content": "x"}), "messages[0].name: must be a string"),
        (line({"role": "tool", "content": "x"}), "messages[0].tool_call_id: answers no open"),
        (line(USER, RESULT), "messages[1].tool_call_id: answers no open tool call"),
        (line(USER, {**RESULT, "tool_call_id": 1}), "messages[1].tool_call_id: must be a string"),
        (
            line(USER, {"role": "assistant", "tool_calls": [CALL]}, {**RESULT, "name": "g"}),
            "messages[2].name: is not the name of the call, 'f'",
        ),
        (line({**USER, "tool_call_id": "1"}), "messages[0].tool_call_id: is not supported"),
        (line({**USER, "tool_calls": [CALL]}), "messages[0].tool_calls: is not supported"),
        (line({**USER, "reasoning_content": "x"}), "messages[0].reasoning_content: is not"),
        (
            line({"role": "assistant", "content": "x", "reasoning_content": ["x"]}),
            "messages[0].reasoning_content: must be a string",
        ),
        (
            line({"role": "assistant", "content": "x", "reasoning_content": "a", "reasoning": "b"}),
            "messages[0].reasoning: differs from the message's other reasoning",
        ),
        (line({"role": "assistant", "content": "x", "weight": 0}), "messages[0].weight: is not"),
        (line({**USER, "cache_control": {"type": "ephemeral"}}), "messages[0].cache_control: is"),
        (line(USER, {"role": "system", "content": "x"}), "messages[1].role: only the first"),
        (line({"role": "user"}), "messages[0].content: must be a string that is not empty"),
        (line({**USER, "content": ""}), "messages[0].content: must be a string that is not empty"),
        (line({**USER, "content": []}), "messages[0].content: must be a string that is not empty"),
        (line({**USER, "content": 7}), "messages[0].content: must be a string"),
        (
            line({"role": "user", "content": "\ud800"}),
            "messages[0].content: contains an unpaired surrogate",
        ),
        (line({**USER, "name": "Ada"}), "messages[0].name: is not supported by ruvd"),
        (line_with_calls({}), "messages[1].tool_calls: must be a list"),
        (line_with_calls(["x"]), "messages[1].tool_calls[0]: must be an object"),
        (line_with_calls([{"id": "1"}]), "messages[1].tool_calls[0].function: must be an object"),
        (
            line_with_calls([CALL, {**CALL, "id": 1}]),
            "messages[1].tool_calls[1].id: must be a string",
        ),
        (
            line_with_calls([{**CALL, "index": "first"}]),
            "messages[1].tool_calls[0].index: must be an integer",
        ),
        (
            line_with_calls([{**CALL, "type": "custom"}]),
            "messages[1].tool_calls[0].type: must be function, not 'custom'",
        ),
        (
            line_with_calls([{**CALL, "function": {"name": "f", "arguments": {"a": "\ud800"}}}]),
            "messages[1].tool_calls[0].function.arguments: contains an unpaired surrogate",
        ),
        (
            line_with_calls([{**CALL, "function": {"arguments": "{}"}}]),
            "messages[1].tool_calls[0].function.name: must be a string",
        ),
        (
            line_with_calls([{**CALL, "function": {**CALL["function"], "more": 1}}]),
            "messages[1].tool_calls[0].function.more: is not supported",
        ),
        (
            line_with_calls([{**CALL, "function": {"name": "f", "arguments": "\ud800"}}]),
            "messages[1].tool_calls[0].function.arguments: contains an unpaired surrogate",
        ),
        (
            line({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}),
            "messages[0].content[0].type: must be text, not 'image_url'",
        ),
        (
            line({"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}),
            "messages[0].content[0].more: is not supported by ruvd",
        ),
        (line(USER, temperature=0), "temperature: is not supported by ruvd"),
        (line(USER, metadata=[1]), "metadata: must be an object"),
        (line(USER, metadata={"topic": "x"}), "metadata.topic: is not supported by ruvd"),
        (line(USER, metadata={"session_id": 7}), "metadata.session_id: must be a string"),
        (line(USER, metadata={"labels": {"k": 1}}), "metadata.labels.k: must be a string"),
        (
            line(USER, metadata={"create_time": 5}),
            "metadata.create_time: must be an RFC 3339 time, not 5",
        ),
        (
            line(USER, metadata={"create_time": "x"}),
            "metadata.create_time: must be an RFC 3339 time, not 'x'",
        ),
        (
            line(USER, metadata={"idle_timeout_seconds": True}),
            "metadata.idle_timeout_seconds: must be a positive number of seconds, not True",
        ),
        (
            line(USER, metadata={"idle_timeout_seconds": 0}),
            "metadata.idle_timeout_seconds: must be a positive number of seconds, not 0",
        ),
        (
            line(USER, metadata={"idle_timeout_seconds": float("nan")}),
            "metadata.idle_timeout_seconds: must be a positive number of seconds, not nan",
        ),
        (
            line(USER, metadata={"context_window": {"max_tokens": 1.5}}),
            "metadata.context_window.max_tokens: must be an integer from 0 to 2147483647, not 1.5",
        ),
        (
            line(USER, metadata={"context_window": {"max_tokens": 2**31}}),
            "metadata.context_window.max_tokens: must be an integer from 0 to 2147483647, not 21",
        ),
        (
            line(USER, metadata={"context_window": {"rendering": "aloud"}}),
            "metadata.context_window.rendering: must be messages or transcript, not 'aloud'",
        ),
    ],
)
def test_a_field_that_sessions_do_not_have_is_refused_by_name(text: bytes, reason: str) -> None:
    with pytest.raises(LineRefused) as refused:
        from_line(text)
    assert str(refused.value).startswith(reason)


def test_tool_calls_results_and_reasoning_are_in_openais_format() -> None:
    call = ToolCall(id="1", name="f", arguments='{"a": ')
    asking = Message(role=Role.ROLE_ASSISTANT, tool_calls=[call], reasoning="Hm.")
    speaking = Message(role=Role.ROLE_ASSISTANT, content="Wait.", tool_calls=[call, call])
    result = Message(role=Role.ROLE_TOOL, tool_call_id="1")
    empty = Message(role=Role.ROLE_ASSISTANT, reasoning="Hm.")
    session = Session(id="s", messages=[asking, result, speaking, empty])
    expected = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    assert json.loads(to_line(session))["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "tool_calls": [expected],
        },
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [expected, expected]},
        {"role": "assistant", "content": "", "reasoning_content": "Hm."},
    ]


def test_tool_calls_results_and_reasoning_come_back_byte_for_byte() -> None:
    messages = [proto_of(message) for message in TOOL_EXCHANGE]
    window = ContextWindow(rendering=RENDERING_MESSAGES)
    session = Session(id="s", messages=messages, context_window=window)
    session.idle_timeout.FromSeconds(60)
    text = to_line(session)
    assert text.splitlines() == [text]
    assert from_line(text.encode()).messages == tuple(messages)


def test_a_message_of_calls_needs_no_content_and_a_call_no_type() -> None:
    untyped = {"id": "1", "function": CALL["function"]}
    for content in ({}, {"content": None}, {"content": ""}):
        message = {"role": "assistant", "tool_calls": [untyped], **content}
        assert from_line(line(message)) == from_line(
            line({"role": "assistant", "content": None, "tool_calls": [CALL]})
        )


def test_a_line_is_one_line_for_every_reader() -> None:
    content = "a\nb\r\x85\u2028\u2029\x1b\x9b\N{SNOWMAN}"
    session = Session(id="s", messages=[Message(role=Role.ROLE_USER, content=content)])
    text = to_line(session)
    assert text.isprintable()
    assert text.splitlines() == [text]
    assert "\N{SNOWMAN}" in text
    assert json.loads(text)["messages"] == [{"role": "user", "content": content}]
