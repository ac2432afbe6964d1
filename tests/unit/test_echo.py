"""The rules of the deterministic engine's answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ruvd.core.errors import EngineRejected
from ruvd.core.model import FinishReason, Message, Role, ToolCall, ToolCallDelta, Usage
from ruvd.core.options import CompletionOptions, ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.engines.echo.engine import EchoEngine

PLAIN = CompletionOptions()


def engine(*, nonce: bool = False) -> EchoEngine:
    return EchoEngine(nonce=nonce, observer=lambda _: None)


async def say(
    engine: EchoEngine, *texts: str, options: CompletionOptions = PLAIN
) -> tuple[list[str], EngineDone]:
    """Asks with `texts`, which are of the user and the assistant in turns. Returns the answer."""
    messages = [
        Message(Role.ASSISTANT if index % 2 else Role.USER, text)
        for index, text in enumerate(texts)
    ]
    chunks = [chunk async for chunk in engine.generate(EngineRequest(messages, options))]
    done = chunks.pop()
    assert isinstance(done, EngineDone)
    return [chunk.text for chunk in chunks if isinstance(chunk, EngineText)], done


async def test_the_answer_is_the_last_user_message_with_its_spaces() -> None:
    for text in ("one two", "  one\n\n two\t three  ", "", "   ", "one"):
        words, done = await say(engine(), text)
        assert "".join(words) == text
        assert done.finish_reason is FinishReason.STOP


async def test_a_word_is_a_token() -> None:
    words, done = await say(engine(), "one two three")
    assert words == ["one", " two", " three"]
    assert done.usage == Usage(3, 0, 3)


async def test_the_longest_prefix_seen_of_a_prompt_and_its_answer_is_cached() -> None:
    echo = engine()
    await say(echo, "a b c")
    _, done = await say(echo, "a b c", "a b c", "d e")
    assert done.usage == Usage(8, 6, 2)
    _, done = await say(echo, "a b x")
    assert done.usage == Usage(3, 2, 3)


async def test_the_same_words_in_another_role_are_not_cached() -> None:
    echo = engine()
    await say(echo, "a b")
    _, done = await say(echo, "a", "b", "c")
    assert done.usage is not None
    assert done.usage.cached_tokens == 1


async def test_a_nonce_tells_two_generations_apart() -> None:
    echo = engine(nonce=True)
    first, _ = await say(echo, "hello there")
    second, _ = await say(echo, "hello there")
    assert re.fullmatch(r"hello there #[0-9a-f]{8}", "".join(first))
    assert first != second


async def test_max_tokens_cuts_after_that_many_words() -> None:
    words, done = await say(engine(), "a b c", options=CompletionOptions(max_tokens=2))
    assert words == ["a", " b"]
    assert done.finish_reason is FinishReason.LENGTH
    _, done = await say(engine(), "a b c", options=CompletionOptions(max_tokens=3))
    assert done.finish_reason is FinishReason.STOP


async def test_the_first_stop_string_ends_the_answer() -> None:
    words, done = await say(engine(), "a b c d", options=CompletionOptions(stop=("d", "c")))
    assert "".join(words) == "a b "
    assert done.finish_reason is FinishReason.STOP


WEATHER = Tool("weather", "Tells it.", '{"type":"object"}')
HARBOUR = Tool("harbour")


async def call(*messages: Message, **options: Any) -> tuple[list[EngineChunk], EngineDone]:
    request = EngineRequest(messages, CompletionOptions(**options))
    *chunks, done = [chunk async for chunk in engine().generate(request)]
    assert isinstance(done, EngineDone)
    return chunks, done


def user(text: str) -> Message:
    return Message(Role.USER, text)


@pytest.mark.parametrize(
    ("text", "choice", "name"),
    [
        ("How is the weather today?", None, "weather"),
        ("weather", ToolChoiceMode.AUTO, "weather"),
        ("Is the harbour open?", ToolChoiceMode.REQUIRED, "harbour"),
        ("Hello", ToolChoiceMode.REQUIRED, "weather"),
        ("Hello", "harbour", "harbour"),
    ],
)
async def test_a_tool_that_is_named_or_required_is_called(
    text: str, choice: ToolChoiceMode | str | None, name: str
) -> None:
    chunks, done = await call(user(text), tools=(WEATHER, HARBOUR), tool_choice=choice)
    calls = [chunk for chunk in chunks if isinstance(chunk, ToolCallDelta)]
    assert calls == chunks
    assert len(calls) > 2
    assert calls[0].name == name
    assert calls[0].id.startswith("call_")
    assert not any(each.id or each.name for each in calls[1:])
    assert json.loads("".join(each.arguments for each in calls)) == {"text": text}
    assert done.finish_reason is FinishReason.TOOL_CALLS
    assert await call(user(text), tools=(WEATHER, HARBOUR), tool_choice=choice) == (chunks, done)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("weather", {"tools": (WEATHER,), "tool_choice": ToolChoiceMode.NONE}),
        ("Whether or not", {"tools": (WEATHER,)}),
        ("weather", {}),
    ],
)
async def test_otherwise_the_answer_is_a_text(text: str, options: dict[str, Any]) -> None:
    chunks, _ = await call(user(text), **options)
    assert chunks
    assert all(isinstance(chunk, EngineText) for chunk in chunks)


async def test_a_tool_that_there_is_not_cannot_be_chosen() -> None:
    with pytest.raises(EngineRejected, match="tides"):
        await call(user("hi"), tools=(WEATHER,), tool_choice="tides")


async def test_a_tools_result_is_the_answer() -> None:
    asked = ToolCall("call_1", "weather", '{"text": "weather?"}')
    messages = (
        user("weather?"),
        Message(Role.ASSISTANT, "", (asked,)),
        Message(Role.TOOL, "It rains.", tool_call_id="call_1"),
    )
    chunks, done = await call(*messages, tools=(WEATHER,), tool_choice=ToolChoiceMode.REQUIRED)
    assert chunks == [EngineText("It"), EngineText(" rains.")]
    assert done.finish_reason is FinishReason.STOP


async def test_a_call_and_its_result_are_in_the_cache_at_the_next_turn() -> None:
    echo = engine()
    options = CompletionOptions(tools=(WEATHER,))
    first = [c async for c in echo.generate(EngineRequest([user("the weather")], options))]
    deltas = [c for c in first if isinstance(c, ToolCallDelta)]
    arguments = "".join(each.arguments for each in deltas)
    messages = [
        user("the weather"),
        Message(Role.ASSISTANT, "", (ToolCall(deltas[0].id, "weather", arguments),)),
        Message(Role.TOOL, "rain", tool_call_id=deltas[0].id),
    ]
    *_, done = [c async for c in echo.generate(EngineRequest(messages, options))]
    assert isinstance(done, EngineDone)
    assert done.usage == Usage(2 + 4 + 1, 2 + 4, 1)


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "count": {"type": "integer"},
        "least": {"type": "number", "minimum": 2},
        "open": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "pair": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        "kind": {"enum": ["ship", "boat"]},
        "version": {"const": 3},
        "owner": {"$ref": "#/$defs/person"},
        "next": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "maybe": {"type": ["string", "null"]},
    },
    "$defs": {"person": {"properties": {"name": {}}}},
}


async def test_structured_output_is_the_smallest_json_that_follows_the_schema() -> None:
    form = ResponseFormat(json.dumps(SCHEMA))
    chunks, done = await call(user('say "hi"'), response_format=form)
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))
    assert json.loads(text) == {
        "title": 'say "hi"',
        "count": 0,
        "least": 2,
        "open": False,
        "tags": [],
        "pair": [0, 0],
        "kind": "ship",
        "version": 3,
        "owner": {"name": 'say "hi"'},
        "next": None,
        "maybe": 'say "hi"',
    }
    assert len(chunks) > 10
    assert done.finish_reason is FinishReason.STOP


async def test_any_json_object_holds_the_text() -> None:
    chunks, _ = await call(user('say "hi"'), response_format=ResponseFormat(json_object=True))
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))
    assert json.loads(text) == {"text": 'say "hi"'}


@pytest.mark.parametrize("schema", ["{", '{"$ref":"#"}', '{"$ref":"#/$defs/x"}'])
async def test_a_schema_that_no_json_can_follow_is_rejected(schema: str) -> None:
    with pytest.raises(EngineRejected, match="JSON Schema"):
        await call(user("hi"), response_format=ResponseFormat(schema))


async def test_what_is_for_real_models_is_taken_without_effect() -> None:
    options = {
        "frequency_penalty": 1.0,
        "presence_penalty": 1.0,
        "logit_bias": {1: 1.0},
        "extra_body": {"top_k": 1},
    }
    assert await call(user("a b"), **options) == await call(user("a b"))
