"""Tools, reasoning and models in the Python client and the commands."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import answers
import pytest_asyncio
from command_line import on_terminal
from google.protobuf.json_format import MessageToDict
from running import StartDaemon
from ruvd_client import (
    AsyncClient,
    Client,
    Message,
    ResponseFormat,
    Role,
    SessionView,
    Tool,
    ToolCall,
    ToolChoiceMode,
    tool_result,
)
from ruvd_client.protocol import complete_request
from ruvd_client.v1.session_service_pb2 import FINISH_REASON_TOOL_CALLS, ToolChoice
from upstream import serving

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
TOOLS = [Tool(name="weather", parameters=SCHEMA), Tool(name="time")]
ASK = "the weather in Bern?"
# The stream of a reasoning model: reasoning, text and a tool call.
REASONED_ANSWER = answers.streamed(
    answers.deltas(
        {"reasoning_content": "Rain "},
        {"reasoning_content": "perhaps."},
        {"content": "One moment."},
        *answers.tool_deltas(("c1", "weather", ['{"city": ', '"Bern"}'])),
        finish_reason="tool_calls",
    )
)


@pytest_asyncio.fixture
async def reasoning_address(daemon: StartDaemon) -> AsyncIterator[str]:
    """A daemon whose engine always answers with reasoning, text and a tool call."""
    async with serving() as server:
        server.answer = lambda _: REASONED_ANSWER
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m")
        async with daemon(*flags) as running:
            yield running.address


def test_every_option_is_an_argument() -> None:
    request = complete_request(
        "hi",
        {
            "frequency_penalty": 0.0,
            "presence_penalty": -1.5,
            "logit_bias": {7: -100},
            "tools": TOOLS,
            "tool_choice": "time",
            "parallel_tool_calls": False,
            "response_format": ResponseFormat(json_schema=SCHEMA),
            "extra_body": {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False, "a": []}},
            "session_id": "s",
        },
    )
    options = request.options
    assert (options.HasField("frequency_penalty"), options.presence_penalty) == (True, -1.5)
    assert dict(options.logit_bias) == {7: -100}
    assert list(options.tools) == TOOLS
    assert options.tool_choice == ToolChoice(function="time")
    assert options.HasField("parallel_tool_calls")
    assert options.response_format.json_schema == SCHEMA
    assert MessageToDict(options.extra_body) == {
        "top_k": 5,
        "chat_template_kwargs": {"enable_thinking": False, "a": []},
    }
    mode = ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
    required = complete_request("hi", {"tool_choice": mode})
    assert required.options.tool_choice == ToolChoice(mode=mode)
    assert not complete_request("hi", {}).options.ListFields()


async def test_a_tool_call_is_answered_in_the_next_turn(address: str) -> None:
    async with AsyncClient(address) as client:
        first = client.complete(ASK, session_id="s", tools=TOOLS)
        assert [text async for text in first] == []
        assert first.finished is not None
        assert first.finished.finish_reason == FINISH_REASON_TOOL_CALLS
        (call,) = (await first.message()).tool_calls
        assert (call.name, json.loads(call.arguments)) == ("weather", {"text": ASK})
        second = client.complete(tool_result(call, "12 degrees"), session_id="s", tools=TOOLS)
        assert await second.text() == "12 degrees"
        session = await client.get_session("s", SessionView.SESSION_VIEW_FULL)
    assert list(session.messages) == [
        Message(role=Role.ROLE_USER, content=ASK),
        Message(role=Role.ROLE_ASSISTANT, tool_calls=[call]),
        Message(role=Role.ROLE_TOOL, content="12 degrees", tool_call_id=call.id),
        Message(role=Role.ROLE_ASSISTANT, content="12 degrees"),
    ]


async def test_the_blocking_client_answers_a_tool_call(address: str) -> None:
    def use() -> None:
        with Client(address) as client:
            choice = ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
            answer = client.complete("hm", session_id="s", tools=TOOLS, tool_choice=choice)
            deltas = [delta.tool_call for delta in answer.deltas()]
            (call,) = answer.message().tool_calls
            assert (deltas[0].id, deltas[0].name) == (call.id, "weather")
            assert "".join(delta.arguments for delta in deltas) == call.arguments
            assert client.complete(tool_result(call, "fog"), session_id="s").text() == "fog"
            assert list(client.list_models().models) == ["echo"]

    await asyncio.to_thread(use)


async def test_reasoning_text_and_tool_calls_are_separate_deltas(reasoning_address: str) -> None:
    async with AsyncClient(reasoning_address) as client:
        parts = {"text": "", "reasoning": "", "arguments": ""}
        answer = client.complete("hi", session_id="s")
        async for delta in answer.deltas():
            parts["text"] += delta.text
            parts["reasoning"] += delta.reasoning
            parts["arguments"] += delta.tool_call.arguments
        call = ToolCall(id="c1", name="weather", arguments='{"city": "Bern"}')
        assert parts == {
            "text": "One moment.",
            "reasoning": "Rain perhaps.",
            "arguments": call.arguments,
        }
        message = await answer.message()
        assert message == Message(
            role=Role.ROLE_ASSISTANT,
            content="One moment.",
            reasoning="Rain perhaps.",
            tool_calls=[call],
        )
        assert await client.complete("hi").text() == "One moment."


async def test_another_client_resumes_in_the_middle_of_a_tool_call(slow_address: str) -> None:
    async with AsyncClient(slow_address) as client, AsyncClient(slow_address) as other:
        answer = client.complete(ASK, session_id="s", tools=TOOLS, request_id="r")
        first = await anext(answer.deltas())
        await client.close()
        rest = other.resume_completion(
            session_id="s", request_id="r", after_sequence=answer.last_sequence
        )
        pieces = [first.tool_call.arguments]
        pieces += [delta.tool_call.arguments async for delta in rest.deltas()]
        (call,) = (await rest.message()).tool_calls
    assert first.tool_call.id == call.id
    assert "".join(pieces) == call.arguments


# --- commands --------------------------------------------------------------------------------


async def test_models_are_listed_and_the_default_is_marked(
    address: str, reasoning_address: str, ruvd: Ruvd
) -> None:
    done = await ruvd("models", "--address", address)
    assert (done.returncode, done.stdout) == (0, "echo  (default)\n")
    done = await ruvd("models", "--address", reasoning_address)
    assert (done.returncode, done.stdout) == (0, "m  (default)\nanother\n")
    done = await ruvd("models", "--json", "--address", reasoning_address)
    assert json.loads(done.stdout) == {"models": ["m", "another"], "default_model": "m"}


async def test_a_default_model_that_the_server_does_not_list_is_marked(
    daemon: StartDaemon, ruvd: Ruvd
) -> None:
    async with serving() as server:
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "mine")
        async with daemon(*flags) as running:
            done = await ruvd("models", "--address", running.address)
    assert done.stdout == "m\nanother\nmine  (default, not listed by the engine)\n"


async def test_a_piped_chat_prints_tool_calls_as_lines_and_no_reasoning(
    reasoning_address: str, ruvd: Ruvd
) -> None:
    done = await ruvd("chat", "--address", reasoning_address, stdin="one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 2 * 'One moment.\ncalls weather({"city": "Bern"})\n'


async def test_on_a_terminal_a_chat_shows_reasoning_dim(reasoning_address: str) -> None:
    async with (
        on_terminal("chat", "--address", reasoning_address) as terminal,
        asyncio.timeout(60),
    ):
        await terminal.see(lambda screen: b"> " in screen)
        terminal.write(b"hello\n")
        # The line editor reads keys only after the prompt; an earlier Ctrl-D would be lost.
        await terminal.see(lambda screen: b"> " in screen.partition(b"total")[2])
        terminal.write(b"\x04")
        await terminal.see(lambda screen: b"continue with" in screen)
        assert await terminal.process.wait() == 0
    lines = [line.strip() for line in terminal.screen.decode().replace("\x1b[0m", "").splitlines()]
    assert "\x1b[2mRain perhaps." in lines or "\x1b[2mRain \x1b[2mperhaps." in lines
    assert lines[lines.index("One moment.") + 1] == 'calls weather({"city": "Bern"})'
