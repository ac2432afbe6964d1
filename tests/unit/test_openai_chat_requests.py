"""Chat completions over HTTP: what is read of a request, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes import done
from openai_door import MAX_REQUEST_BYTES, Door, assistant, error, events, user

from ruvd.core import errors
from ruvd.core.model import FinishReason, Role, ToolCall, ToolCallDelta
from ruvd.core.options import ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


async def test_every_option_reaches_the_engine() -> None:
    door = Door()
    response = await door.chat(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        temperature=0.5, top_p=0.9, max_completion_tokens=7, stop="x", seed=3,
        frequency_penalty=1, presence_penalty=-1, logit_bias={"5": 2}, tools=[TOOL],
        tool_choice="required", parallel_tool_calls=False, top_k=40, reasoning_effort="low",
        response_format={
            "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}},
        },
        n=1, logprobs=False, store=False, service_tier="auto", stream=False,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    asked = door.core.engine.requests[0]
    assert [(m.role, m.content) for m in asked.messages] == [
        (Role.SYSTEM, "be brief"),
        (Role.USER, "ab"),
    ]
    options = asked.options
    assert (options.model, options.temperature, options.top_p, options.max_tokens) == (
        "m", 0.5, 0.9, 7,
    )  # fmt: skip
    assert (options.stop, options.seed, options.logit_bias) == (("x",), 3, {5: 2.0})
    assert options.tools == (Tool("look", parameters='{"type": "object"}'),)
    assert options.tool_choice is ToolChoiceMode.REQUIRED
    assert options.parallel_tool_calls is False
    assert options.response_format == ResponseFormat('{"type": "object"}', "n")
    assert options.extra_body == {"top_k": 40, "reasoning_effort": "low"}


async def test_reasoning_tool_calls_and_usage_are_written_whole_and_in_chunks() -> None:
    script = (
        EngineReasoning("hm"), EngineText("see"), ToolCallDelta(0, "c1", "look"),
        ToolCallDelta(0, arguments="{}"),
        EngineDone(FinishReason.TOOL_CALLS, done(prompt=9, cached=4, completion=5).usage),
    )  # fmt: skip
    door = Door()
    door.answers(*script)
    whole = (await door.chat(user("q"), tools=[TOOL])).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["tool_calls"]) == (
        "see", "hm", [CALL],
    )  # fmt: skip
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    door.answers(*script)
    streamed = await door.chat(
        user("q"), tools=[TOOL], stream=True, stream_options={"include_usage": True}
    )
    *data, last = events(streamed)
    assert last == "[DONE]"
    chunks = [json.loads(each) for each in data]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(each.get("reasoning_content", "") for each in deltas) == "hm"
    assert "".join(each.get("content", "") for each in deltas) == "see"
    calls = [call for each in deltas for call in each.get("tool_calls", ())]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("c1", "look")
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    door.answers(EngineText("a"), EngineDone(FinishReason.LENGTH, None))
    unknown = (await door.chat(user("q"))).json()
    assert (unknown["usage"], unknown["choices"][0]["finish_reason"]) == (None, "length")


async def test_a_tools_result_and_an_answer_as_the_client_has_it_are_read() -> None:
    door = Door()
    spoken = {"role": "assistant", "content": None, "refusal": None, "annotations": [],
              "audio": None, "function_call": None, "tool_calls": [CALL],
              "reasoning_content": "hm"}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c1", "content": "found"}
    assert (await door.chat(user("q"), spoken, result, tools=[TOOL])).status_code == 200
    sent = door.core.engine.requests[0].messages
    assert sent[1].tool_calls == (ToolCall("c1", "look", "{}"),)
    assert (sent[1].reasoning, sent[2].tool_call_id, sent[2].content) == ("hm", "c1", "found")
    lost = await door.chat(user("q"), {**result, "tool_call_id": "other"})
    assert error(lost)["param"] == "messages[1].tool_call_id"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": 5}, "model"),
    "temperature": ({"temperature": "hot"}, "temperature"),
    "range": ({"temperature": 3}, "temperature"),
    "infinite": ({"top_p": 10**400}, "top_p"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "max_completion_tokens": ({"max_completion_tokens": -1}, "max_completion_tokens"),
    "both limits": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    "float": ({"max_tokens": 1.5}, "max_tokens"),
    "stop": ({"stop": [1]}, "stop[0]"),
    "empty stop": ({"stop": [""]}, "stop[0]"),
    "seed": ({"seed": 2**63}, "seed"),
    "bias": ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    "bias value": ({"logit_bias": {"1": 200}}, "logit_bias[1]"),
    "n": ({"n": 2}, "n"),
    "n as a boolean": ({"n": True}, "n"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "modalities": ({"modalities": ["audio"]}, "modalities"),
    "store": ({"store": True}, "store"),
    "metadata": ({"metadata": {"a": "b"}}, "metadata"),
    "functions": ({"functions": [{}]}, "functions"),
    "stream": ({"stream": 1}, "stream"),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    "tools": ({"tools": {}}, "tools"),
    "tool": ({"tools": [5]}, "tools[0]"),
    "kind of tool": ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    "tool name": ({"tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools[0].function.name"),
    "schema": (
        {"tools": [{**TOOL, "function": {"name": "a", "parameters": []}}]},
        "tools[0].function.parameters",
    ),
    "choice": ({"tool_choice": "sometimes"}, "tool_choice"),
    "chosen": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
    ),
    "required": ({"tool_choice": "required"}, "tool_choice"),
    "allowed": ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    "format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "form": ({"response_format": 5}, "response_format"),
    "format schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        "response_format.json_schema.schema",
    ),
    "format name": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "name": "a b"}}},
        "response_format.json_schema.name",
    ),
    "own field": ({"id_slot": 1}, "id_slot"),
    "deep": ({"top": json.loads("[" * 50 + "]" * 50)}, "top"),
    "surrogate": ({"top": "\ud800"}, "top"),
    "big number": ({"top": 2**60 + 1}, "top"),
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages": ({"messages": "hello"}, "messages"),
    "message": ({"messages": [5]}, "messages[0]"),
    "role": ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    "role kind": ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
    "content": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "empty": ({"messages": [user("")]}, "messages[0].content"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    "name": ({"messages": [{**user("a"), "name": "bob"}]}, "messages[0].name"),
    "late system": (
        {"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]},
        "messages[1].role",
    ),
    "last": ({"messages": [user("a"), assistant("b")]}, "messages[1].role"),
    "result": ({"messages": [{"role": "tool", "content": "b"}]}, "messages[0].tool_call_id"),
    "calls": (
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"id": 5}]}, user("b")]},
        "messages[1].tool_calls[0].id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_field_is_named(case: str) -> None:
    fields, path = WRONG[case]
    door = Door()
    body = {"model": "m", "messages": [user("q")], **fields}
    response = await door.http.post(
        "/chat/completions",
        content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    told = error(response)
    assert (told["param"], told["type"], told["code"]) == (
        path, "invalid_request_error", "invalid_request",
    )  # fmt: skip
    assert not door.core.engine.requests


async def test_all_wrong_fields_are_named_at_once() -> None:
    response = await Door().chat({"role": "robot"}, 5, model=7, temperature=9, n=3, stop=[4])  # type: ignore[arg-type]
    told = error(response)["message"]
    for path in ("messages[0].role", "messages[1]", "model", "temperature", "n", "stop[0]"):
        assert f"{path}: " in told


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "body"),
    "no JSON": (b'{"model":', 400, "body"),
    "no object": (b"[]", 400, "body"),
    "no number": (b'{"temperature": NaN}', 400, "body"),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400, "body"),
    "deep": (b"[" * 100_000, 400, "body"),
    "long number": (b'{"seed": ' + b"1" * 5000 + b"}", 400, "body"),
    "many values": (b'{"a": [' + b"{}," * 150_000 + b"{}]}", 400, "body"),
    "unpaired quote": (b'{"a": "' + b'\\"' * 200_000, 400, "body"),
    "large": (b" " * (MAX_REQUEST_BYTES + 1), 413, "request"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_body_that_cannot_be_read_is_refused_in_little_time(case: str) -> None:
    body, status, param = BODIES[case]
    door = Door()
    headers = {"content-type": "application/json"}
    response = await door.http.post("/chat/completions", content=body, headers=headers)
    assert (response.status_code, error(response)["param"]) == (status, param)
    assert (await door.chat(user("q"))).status_code == 200


async def test_a_form_of_a_web_page_is_no_request() -> None:
    response = await Door().http.post("/chat/completions", content=b"{}")
    assert (response.status_code, error(response)["code"]) == (415, "unsupported_media_type")


async def test_commas_in_texts_are_no_values() -> None:
    door = Door()
    text = 'a,b,{"c": [1]},' * 20_000
    assert (await door.chat(user(text))).status_code == 200
    assert door.core.engine.requests[0].messages[0].content == text


async def test_an_error_before_the_first_token_is_a_status_and_a_later_one_an_event() -> None:
    door = Door()
    door.answers(errors.EngineRateLimited("slow down", retry_after_seconds=2.5))
    early = await door.chat(user("q"), stream=True)
    assert (early.status_code, error(early)["code"]) == (429, "rate_limit_exceeded")
    assert (early.headers["retry-after"], early.headers["x-should-retry"]) == ("3", "true")
    assert early.headers["x-ruvd-reason"] == "ENGINE_RATE_LIMITED"
    door.answers(EngineText("some"), errors.EngineUnavailable("broke off"))
    late = await door.chat(user("q"), stream=True)
    *_, last = events(late)
    assert late.status_code == 200
    assert json.loads(last)["error"]["code"] == "engine_unavailable"
    door.answers(RuntimeError("secret"))
    bug = await door.chat(user("q"))
    assert (bug.status_code, error(bug)["code"]) == (500, "internal")
    assert "secret" not in bug.text


async def test_a_body_is_refused_while_it_grows_if_there_is_no_memory_for_it() -> None:
    door, sent = Door(memory_bytes=1), 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(20):
            sent += 1 << 15
            yield b" " * (1 << 15)

    headers = {"content-type": "application/json"}
    refused = await door.http.post("/chat/completions", content=body(), headers=headers)
    assert (refused.status_code, error(refused)["code"]) == (503, "overloaded")
    assert sent < MAX_REQUEST_BYTES
    assert (await door.chat(user("small"))).status_code == 200
    large = await Door().chat(user("x" * 500_000))
    assert large.status_code == 200
