"""Histories that some servers refuse for ever after: what is sent is valid and only grows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from quirk import Ask, Quirk, check, say, stream, table
from upstream import Upstream

from ruvd.core.model import Message, Role, ToolCall
from ruvd.core.options import Tool
from ruvd.engines.chat.history import NO_ANSWER, sendable, valid_arguments

HI = stream(say("Hi", "stop"))
ASKED = Message(Role.USER, "And now?")
ARGUMENTS = st.sampled_from(["", "{}", '{"a": 1}', '{"a": ', "null", "[1]", "no", '"{}"'])


def user(text: str = "hello") -> Message:
    return Message(Role.USER, text)


def assistant(content: str = "", *calls: ToolCall, reasoning: str = "") -> Message:
    return Message(Role.ASSISTANT, content, calls, reasoning=reasoning)


def call(id_: str = "1", arguments: str = "{}") -> ToolCall:
    return ToolCall(id_, "f", arguments)


def result(id_: str = "1", content: str = "x") -> Message:
    return Message(Role.TOOL, content, tool_call_id=id_)


def as_sent(server: Upstream) -> list[dict[str, Any]]:
    (request,) = server.requests
    messages: list[dict[str, Any]] = request.body["messages"]
    return messages


def refuse_invalid(messages: Sequence[dict[str, Any]]) -> None:
    """Fails as the strictest servers do."""
    open_calls: list[str] = []
    for before, message in zip([{"role": ""}, *messages], messages, strict=False):
        calls = message.get("tool_calls") or []
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, "each call has a result before another message"
        assert (before["role"], message["role"]) != ("user", "user"), "the roles alternate"
        if message["role"] == "assistant":
            assert calls or (message["content"] or "").strip(), "an answer has content or calls"
        open_calls = [each["id"] for each in calls]
        assert len(set(open_calls)) == len(open_calls)
        for each in calls:
            assert isinstance(json.loads(each["function"]["arguments"]), dict)
    assert not open_calls


def history(name: str, *messages: Message, becomes: Any = None) -> Quirk:
    """A row whose history is followed by a question; `becomes` is its second message as sent."""

    def valid(server: Upstream) -> None:
        sent = as_sent(server)
        refuse_invalid(sent)
        assert sent[-1]["content"] == messages[-1].content or sent[-1]["content"] == ASKED.content
        if becomes is not None:
            fields = {key: sent[1].get(key) for key in becomes}
            assert fields == becomes

    last = [] if messages[-1].role is Role.TOOL else [ASKED]
    ask = Ask(messages=[*messages, *last], options={"tools": (Tool("f"),)})
    return Quirk(name, HI, text="Hi", request=ask, sends=valid)


def sent_call(name: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}


def arguments(name: str, text: str, expected: Any) -> Quirk:
    def sends(server: Upstream) -> None:
        sent = as_sent(server)
        refuse_invalid(sent)
        assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == expected

    messages = [user(), assistant("", call("1", text)), result()]
    return Quirk(name, HI, text="Hi", request=Ask(messages=messages), sends=sends)


@table(
    history("Mistral: an empty answer", user(), assistant(), becomes={"content": NO_ANSWER}),
    history(
        "Anthropic: an answer of spaces", user(), assistant(" \n\t"), becomes={"content": NO_ANSWER}
    ),
    history("OpenAI: reasoning and no answer", user(), assistant("", reasoning="Hm.")),
    history("Gemma: two empty answers", user(), assistant(), user(), assistant()),
    history("any: an answer stays as it is", user(), assistant(" a "), becomes={"content": " a "}),
    history(
        "OpenAI: a call without a result",
        user(),
        assistant("", call()),
        becomes={"content": NO_ANSWER, "tool_calls": None},
    ),
    history(
        "OpenAI: a text with a call without a result",
        user(),
        assistant("Wait.", call()),
        becomes={"content": "Wait.", "tool_calls": None},
    ),
    history(
        "Mistral: one of two calls has a result",
        user(),
        assistant("", call("1"), call("2", "cut")),
        result("2"),
    ),
    history(
        "OpenAI: a call is answered, and the next one is not",
        user(),
        assistant("", call()),
        result(),
        assistant("", call("2", '{"a')),
    ),
    history(
        "vLLM: calls with equal ids in different messages",
        user(),
        assistant("", call()),
        result(),
        assistant("", call()),
        result(),
    ),
    history(
        "OpenAI: a function that no tool can be",
        user(),
        assistant("", ToolCall("1", "functions.get weather:é" + "x" * 80, "{}")),
        result(),
        becomes={"tool_calls": [sent_call("functions.get_weather__" + "x" * 41)]},
    ),
    arguments("vLLM: no arguments", "", {}),
    arguments("vLLM: arguments of spaces", " \n", {}),
    arguments("vLLM: arguments of null", "null", {}),
    arguments("vLLM: arguments that are cut", '{"a": "b', {"arguments": '{"a": "b'}),
    arguments("Qwen: arguments that are a list", '["a"]', {"arguments": ["a"]}),
    arguments("Llama: arguments that are a number", "7", {"arguments": 7}),
    arguments("Hermes: arguments that are a text", "Bern", {"arguments": "Bern"}),
    arguments("Gemini: arguments that are a JSON string", '"Bern"', {"arguments": "Bern"}),
    arguments("GLM: arguments that are encoded twice", '"{\\"a\\": 1}"', {"a": 1}),
    arguments("Llama: a line break in a string", '{"a": "b\nc"}', {"a": "b\nc"}),
    arguments("Python: a number that is not JSON", '{"a": NaN}', {"arguments": '{"a": NaN}'}),
    arguments("any: two objects", "{}{}", {"arguments": "{}{}"}),
    arguments(
        "any: half of a surrogate pair", '{"a": "\\ud800"}', {"arguments": '{"a": "\\ud800"}'}
    ),
    arguments("any: valid arguments", '{"a":  1.0}', {"a": 1.0}),
)
async def test_what_is_sent_is_valid(quirk: Quirk) -> None:
    await check(quirk)


def test_valid_arguments_stay_as_they_are_byte_for_byte() -> None:
    text = '{ "b":1.0,\n"a" : "\\u00e4" }'
    assert valid_arguments(text) is text


def test_arguments_without_end_are_sent_as_text() -> None:
    text = '{"a":' * 5000
    assert json.loads(valid_arguments(text)) == {"arguments": text}


ANSWERS = st.builds(assistant, st.sampled_from(["", " ", "a"])) | st.builds(
    lambda content, texts: assistant(
        content, *(call(str(index), text) for index, text in enumerate(texts))
    ),
    st.sampled_from(["", "a"]),
    st.lists(ARGUMENTS, min_size=1, max_size=3),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[list[Message]]:
    """Returns the turns of a conversation: what is new, and the answer."""
    turns: list[list[Message]] = []
    open_calls: list[str] = []
    for _ in range(draw(st.integers(1, 5))):
        answered = draw(st.permutations(open_calls))[: draw(st.integers(0, len(open_calls)))]
        new = [result(each) for each in answered] or [user()]
        answer = draw(ANSWERS)
        open_calls = [each.id for each in answer.tool_calls]
        turns.append([*new, answer])
    return turns


@given(conversations())
def test_every_prompt_is_valid_and_begins_with_the_one_before(turns: list[list[Message]]) -> None:
    messages: list[Message] = []
    before: list[Message] = []
    for *new, answer in turns:
        prompt = list(sendable([*messages, *new]))
        assert prompt[: len(before)] == before
        assert prompt[len(prompt) - len(new) :] == new
        messages += [*new, answer]
        before = prompt
    assert [each.role for each in sendable(messages)] == [each.role for each in messages]
