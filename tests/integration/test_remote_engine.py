"""The requests and responses of the engine `openai`: a real daemon, and a server that records."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import answers
import grpc
import pytest
from answers import Answer, Shape
from google.protobuf.struct_pb2 import Struct
from running import RunningDaemon, StartDaemon
from upstream import Upstream, serving
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

SHAPES: tuple[Shape, ...] = ("openai", "vllm", "llama-server")
KEY = "sk-the-key-of-the-house"


@asynccontextmanager
async def facing(
    daemon: StartDaemon, *flags: str, folder: Path | None = None
) -> AsyncIterator[tuple[Upstream, RunningDaemon, Any]]:
    """A server, a daemon with the engine `openai` that uses it, and a stub."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        command = ("--engine", "openai", "--base-url", server.url, "--model", "m", *flags)
        running = await stack.enter_async_context(daemon(*command, folder=folder))
        yield server, running, await stack.enter_async_context(running.stub())


async def history(stub: Any, session_id: str) -> list[pb.Message]:
    request = pb.GetSessionRequest(session_id=session_id, view=pb.SESSION_VIEW_FULL)
    return list((await stub.GetSession(request)).session.messages)


# --- structured answers ----------------------------------------------------------------------


async def test_an_answer_that_breaks_its_schema_fails_and_leaves_the_session_as_it_was(
    daemon: StartDaemon,
) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"pattern": r"^\p{L}\d$"}}})
    form = pb.ResponseFormat(json_schema=schema)
    async with facing(daemon) as (server, _, stub):
        request = turn("hi", "s")
        request.options.response_format.CopyFrom(form)
        server.scripts.append(answers.text('{"a": ', '"1"}'))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await events(stub, request)
        assert failed.value.code() == grpc.StatusCode.ABORTED
        assert details(failed.value)[0] == "SCHEMA_VIOLATED"
        assert "the value at $.a breaks the rule" in str(failed.value.details())
        missing = pb.GetSessionRequest(session_id="s")
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.GetSession(missing)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        server.scripts.append(answers.text('{"a": ', finish_reason="length"))
        assert (await events(stub, request))[-1].finished.message.content == '{"a": '
        server.scripts.append(answers.text('{"a": "é1"}'))
        assert (await events(stub, request))[-1].finished.message.content == '{"a": "é1"}'


# --- answers ---------------------------------------------------------------------------------


async def test_each_servers_answer_is_read_with_what_it_has_measured(daemon: StartDaemon) -> None:
    """Cached tokens are as the server reports them, and unset, not 0, if it does not."""
    async with facing(daemon) as (server, _, stub):
        seen = {}
        for shape in SHAPES:
            server.scripts.append(answers.text("Hello", " there", shape=shape))
            finished = await say(stub, "hi")
            assert finished.message.content == "Hello there"
            assert finished.finish_reason == pb.FINISH_REASON_STOP
            assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (9, 3)
            seen[shape] = (
                finished.usage.cached_tokens if finished.usage.HasField("cached_tokens") else None,
                finished.timings.prefill.ToMilliseconds()
                if finished.timings.HasField("prefill")
                else None,
            )
        assert seen == {"openai": (4, None), "vllm": (None, None), "llama-server": (4, 250)}
        # Without the chunk with usage, and with an empty usage.
        for silent in (answers.deltas({"content": "Hi"})[:-1], answers.deltas(usage={})):
            server.scripts.append(answers.streamed(silent))
            assert not (await say(stub, "hi")).HasField("usage")


async def test_an_answer_cut_into_small_writes_is_the_same_text(daemon: StartDaemon) -> None:
    """Characters of up to four bytes, escapes, surrogate pairs and line ends are cut anywhere."""
    words = ["naïve ", "日本語 ", "😀👨\u200d👩", " e\u0301 ", "a\r\nb\n\n", '"\\ ', "\u2028\x00"]
    escaped = [
        b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\r\n\r\n"
        for word in words
    ]
    end = answers.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    whole = answers.text(*words)
    piped = answers.streamed([b": ping\n\n", *escaped, end], chunked=False)
    async with facing(daemon) as (server, _, stub):
        for answer, every in itertools.product((whole, piped), (1, 2, 3, 5, 7, 64)):
            server.scripts.append(answers.split(answer, every))
            got = await events(stub, turn("hi", "s"))
            assert "".join(event.delta.text for event in got) == "".join(words)
            assert got[-1].finished.message.content == "".join(words)
        assert set((await contents(stub, "s"))[1::2]) == {"".join(words)}


async def test_an_empty_answer_is_an_answer(daemon: StartDaemon) -> None:
    async with facing(daemon) as (server, _, stub):
        for shape in SHAPES:
            server.scripts.append(answers.text(shape=shape))
            finished = await say(stub, "hi", "s")
            assert finished.message.content == ""
            assert finished.finish_reason == pb.FINISH_REASON_STOP
        assert await contents(stub, "s") == ["hi", ""] * 3


async def test_why_an_answer_ended_is_told(daemon: StartDaemon) -> None:
    async with facing(daemon) as (server, _, stub):
        reasons = (("stop", pb.FINISH_REASON_STOP), ("length", pb.FINISH_REASON_LENGTH))
        for reason, expected in reasons:
            server.scripts.append(answers.text("Hello", finish_reason=reason))
            assert (await say(stub, "hi")).finish_reason == expected


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_apart_from_the_text_kept_and_not_sent_again(
    daemon: StartDaemon, field: str
) -> None:
    """Under the name of DeepSeek and older vLLM, and under that of newer vLLM."""
    async with facing(daemon) as (server, _, stub):
        thoughts = [{field: "Let me "}, {field: "think."}, {"content": "Yes"}, {"content": "."}]
        server.scripts.append(answers.streamed(answers.deltas(*thoughts)))
        got = await events(stub, turn("Is it?", "s"))
        assert "".join(event.delta.reasoning for event in got) == "Let me think."
        assert "".join(event.delta.text for event in got) == "Yes."
        message = got[-1].finished.message
        assert (message.content, message.reasoning) == ("Yes.", "Let me think.")
        assert (await history(stub, "s"))[1].reasoning == "Let me think."
        await say(stub, "Sure?", "s")
        assert b"think" not in server.requests[-1].raw


# --- tools -----------------------------------------------------------------------------------

FRAGMENTS = ["", '{"ci', 'ty":\t"Zü', 'rich"', ', "n": 1.0e0 ,"x":"\\u00fc"', "}"]
ARGUMENTS = "".join(FRAGMENTS)
SCHEMA = '{"type": "object",  "properties":{"city":{"type":"string"}, "n":{"type":"number"}}}'
TOOLS = pb.CompletionOptions(
    tools=[
        pb.Tool(name="get_weather", description="In a city", parameters=SCHEMA, strict=True),
        pb.Tool(name="now"),
    ],
    tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO),
    parallel_tool_calls=True,
)


@pytest.mark.parametrize("shape", SHAPES)
async def test_tool_calls_and_their_results_go_over_two_turns_byte_for_byte(
    daemon: StartDaemon, shape: Shape
) -> None:
    """Calls that were streamed in fragments are stored, and sent again as the model wrote them."""
    calls = [("call_a", "get_weather", FRAGMENTS[1:]), ("call_b", "now", [])]
    parts = [{"content": "One moment."}, *answers.tool_deltas(*calls, shape=shape)]
    asked = answers.deltas(*parts, finish_reason="tool_calls", shape=shape)
    async with facing(daemon) as (server, _, stub):
        server.scripts.append(answers.split(answers.streamed(asked), 11))
        first = turn("How warm is it?", "s", options=TOOLS, system_prompt="Be brief.")
        got = await events(stub, first)
        finished = got[-1].finished
        assert finished.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        expected = [
            pb.ToolCall(id="call_a", name="get_weather", arguments=ARGUMENTS),
            pb.ToolCall(id="call_b", name="now", arguments=""),
        ]
        assert list(finished.message.tool_calls) == expected
        told: dict[int, list[pb.ToolCallDelta]] = {}
        for event in got:
            if event.delta.HasField("tool_call"):
                told.setdefault(event.delta.tool_call.index, []).append(event.delta.tool_call)
        assert [(told[i][0].id, told[i][0].name) for i in (0, 1)] == [
            ("call_a", "get_weather"),
            ("call_b", "now"),
        ]
        assert "".join(delta.arguments for delta in told[0]) == ARGUMENTS
        assert not any(delta.id or delta.name for delta in told[0][1:])
        assert list((await history(stub, "s"))[1].tool_calls) == expected

        results = [
            pb.Message(role=pb.ROLE_TOOL, tool_call_id="call_a", content="12 °C"),
            pb.Message(role=pb.ROLE_TOOL, tool_call_id="call_b", content=""),
        ]
        second = pb.CompleteRequest(session_id="s", messages=results, options=TOOLS)
        server.scripts.append(answers.text("Twelve", " degrees."))
        assert (await events(stub, second))[-1].finished.message.content == "Twelve degrees."
        await say(stub, "Thanks", "s", options=TOOLS)

        one, two, three = server.requests
        assert one.body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How warm is it?"},
        ]
        said, *told_back = two.body["messages"][2:]
        assert said["role"] == "assistant"
        assert said["content"] == "One moment."
        assert [(c["id"], c["type"], c["function"]) for c in said["tool_calls"]] == [
            ("call_a", "function", {"name": "get_weather", "arguments": ARGUMENTS}),
            ("call_b", "function", {"name": "now", "arguments": "{}"}),  # "" is no JSON
        ]
        assert told_back == [
            {"role": "tool", "tool_call_id": "call_a", "content": "12 °C"},
            {"role": "tool", "tool_call_id": "call_b", "content": ""},
        ]
        # Each prompt begins with the bytes of the previous prompt.
        for before, after in ((one, two), (two, three)):
            assert after.messages_json.startswith(before.messages_json[:-1] + b",")
            assert after.body["tools"] == before.body["tools"]
        # The schema is sent as it was received, with its spaces.
        assert b'"parameters":' + SCHEMA.encode() in one.raw.replace(
            b'"parameters": ', b'"parameters":'
        )
        assert one.body["tools"][0]["function"]["strict"] is True
        assert one.body["tools"][1] == {"type": "function", "function": {"name": "now"}}
        assert one.body["tool_choice"] == "auto"
        assert one.body["parallel_tool_calls"] is True


async def test_a_tool_call_without_text_and_a_named_choice(daemon: StartDaemon) -> None:
    async with facing(daemon) as (server, _, stub):
        # A whole call in one delta, as Ollama sends it, and a finish reason that says stop.
        call = {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "now", "arguments": "{}"},
        }
        whole = answers.deltas({"tool_calls": [call]}, finish_reason="stop")
        server.scripts.append(answers.streamed(whole))
        options = pb.CompletionOptions(
            tools=[pb.Tool(name="now")], tool_choice=pb.ToolChoice(function="now")
        )
        finished = await say(stub, "What time is it?", "s", options=options)
        assert finished.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        assert finished.message.content == ""
        choice = {"type": "function", "function": {"name": "now"}}
        assert server.requests[-1].body["tool_choice"] == choice
        result = pb.Message(role=pb.ROLE_TOOL, tool_call_id="call_1", content="noon")
        await events(stub, pb.CompleteRequest(session_id="s", messages=[result], options=options))
        assert server.requests[-1].body["messages"][1].get("content") is None


# --- requests --------------------------------------------------------------------------------


async def test_every_option_reaches_the_server_under_its_own_name(daemon: StartDaemon) -> None:
    extra = Struct()
    extra.update({"top_k": 40, "min_p": 0.05, "nested": {"list": [1, "a", None, True]}})
    schema = '{"type":"object",  "properties":{}}'
    options = pb.CompletionOptions(
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=["\n", "END"],
        seed=42,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        logit_bias={7: -100.0, 3: 1.5},
        response_format=pb.ResponseFormat(json_schema=schema, name="it", strict=False),
        extra_body=extra,
    )
    async with facing(daemon) as (server, _, stub):
        server.scripts.append(answers.text("{}"))
        await say(stub, "hi", options=options)
        await say(stub, "hi")
        full, bare = (request.body for request in server.requests)
        assert schema.encode() in server.requests[0].raw
        assert full == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 7,
            "stop": ["\n", "END"],
            "seed": 42,
            "frequency_penalty": 0.25,
            "presence_penalty": -0.5,
            "logit_bias": {"3": 1.5, "7": -100},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "it", "schema": json.loads(schema), "strict": False},
            },
            "top_k": 40,
            "min_p": 0.05,
            "nested": {"list": [1, "a", None, True]},
        }
        assert b'"top_k":40.0' not in server.requests[0].raw  # a whole number is sent as one
        assert bare == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert server.requests[0].headers["accept"] == "text/event-stream"
        assert server.requests[0].headers["content-type"] == "application/json"


async def test_extra_body_cannot_replace_what_is_ours(daemon: StartDaemon) -> None:
    async with facing(daemon) as (server, _, stub):
        for field in ("messages", "stream", "model", "temperature", "tools", "cache_salt", "n"):
            extra = Struct()
            extra.update({field: "x"})
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await say(stub, "hi", options=pb.CompletionOptions(extra_body=extra))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, field
            assert field in (refused.value.details() or "")
        assert not server.requests


async def test_the_model_of_a_call_goes_before_the_sessions_and_that_before_the_daemons(
    daemon: StartDaemon,
) -> None:
    async with facing(daemon) as (server, _, stub):
        await stub.CreateSession(pb.CreateSessionRequest(session_id="s", model="of the session"))
        of_the_call = pb.CompletionOptions(model="of the call")
        for session_id, options in (("s", of_the_call), ("s", None), ("", of_the_call), ("", None)):
            got = await events(stub, turn("hi", session_id, options=options))
            assert got[0].started.model == server.requests[-1].body["model"]
        asked = [request.body["model"] for request in server.requests]
        assert asked == ["of the call", "of the session", "of the call", "m"]
        listed = await stub.ListModels(pb.ListModelsRequest())
        assert (list(listed.models), listed.default_model) == (["m", "another"], "m")


async def test_the_command_models_lists_what_the_server_offers(daemon: StartDaemon) -> None:
    async with facing(daemon) as (_, running, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ruvd", "models", "--address", running.socket,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, (out, err)
        for name in answers.MODELS:
            assert name.encode() in out


# --- affinity --------------------------------------------------------------------------------


def keys_of(server: Upstream, place: str) -> Sequence[str | None]:
    """The value of a header or body field in each completion request."""
    return [
        request.headers.get(place.lower()) or request.body.get(place) for request in server.requests
    ]


AFFINITIES = [
    (("openai",), "prompt_cache_key"),
    (("vllm",), "X-Session-ID"),
    (("sglang",), "X-SMG-Routing-Key"),
    (("vllm", "--affinity-header", "X-Routed-By"), "X-Routed-By"),
    (("none", "--affinity-header", "X-Routed-By"), "X-Routed-By"),
]


@pytest.mark.parametrize(("flags", "place"), AFFINITIES)
async def test_a_session_has_one_key_for_good_and_another_than_every_other(
    daemon: StartDaemon, tmp_path: Path, flags: Sequence[str], place: str
) -> None:
    """Over turns and a restart. Without a session there is no key. The key contains no id."""
    restarts = 1 if place == "X-Session-ID" else 0  # one preset with a restart is enough
    command = ("--affinity", *flags, "--store", f"sqlite:{tmp_path}/s.db")
    seen: list[str | None] = []
    for _ in range(1 + restarts):
        async with facing(daemon, *command) as (server, _, stub):
            for session_id in ("alice", "bob", "alice", ""):
                await say(stub, "hi", session_id)
            seen += keys_of(server, place)
            for request in server.requests:
                assert b"alice" not in request.raw
                assert "alice" not in "".join(request.headers.values())
    alice, bob = seen[:2]
    assert alice
    assert bob
    assert alice != bob
    assert seen == [alice, bob, alice, None] * (1 + restarts)


async def test_without_affinity_the_server_is_told_nothing(daemon: StartDaemon) -> None:
    for preset in ("none", "llama-server"):
        async with facing(daemon, "--affinity", preset) as (server, _, stub):
            await say(stub, "hi", "one")
            await say(stub, "hi", "two")
            one, two = server.requests
            assert one.raw == two.raw
            assert one.headers == two.headers


async def test_the_salt_of_the_deployment_is_sent_and_a_private_call_has_its_own(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "ruvd.toml").write_text('cache_salt = "pepper"\n')
    config = ("--config", str(tmp_path / "ruvd.toml"))
    async with facing(daemon, "--affinity", "vllm", *config) as (server, _, stub):
        await say(stub, "hi", "s")
        private = pb.CompletionOptions(bypass_cache=True)
        await say(stub, "hi", options=private)
        await say(stub, "hi", options=private)
        salts = [request.body["cache_salt"] for request in server.requests]
        assert salts[0] == "pepper"
        assert len(set(salts)) == 3
    async with facing(daemon, "--affinity", "openai", *config) as (server, _, stub):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await say(stub, "hi", options=private)
        assert details(refused.value)[0] == "ENGINE_REJECTED"
        await say(stub, "hi")
        assert b"pepper" not in server.requests[-1].raw


# --- credentials -----------------------------------------------------------------------------


async def test_the_key_reaches_the_server_and_no_log_and_no_error(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    """The server echoes the key in every kind of answer."""
    (tmp_path / "ruvd.toml").write_text(f'api_key = "{KEY}"\n')
    config = ("--config", str(tmp_path / "ruvd.toml"), "--log-level", "debug", "--retries", "0")
    text = f"Incorrect API key provided: Bearer {KEY}"
    error = json.dumps({"error": {"message": text, "code": KEY, "type": KEY}}).encode()
    echoes: list[Answer] = [
        answers.refusal("401 Unauthorized", text),
        answers.refusal("400 Bad Request", text),
        answers.refusal("500 Oops", text),
        answers.refusal("429 Too Many", text),
        answers.http(text.encode(), status="404 No", kind="text/plain"),
        answers.http(b"{}", kind=f"text/{KEY}"),
        answers.http(b"", status=f"400 {KEY}"),
        answers.http(error),
        answers.streamed([b"data: " + error + b"\n\n"]),
        answers.streamed([f"data: {KEY}\n\n".encode()]),
        [f"{KEY} no HTTP\r\n\r\n".encode(), answers.CUT],
        [f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(), answers.CUT],
        [answers.stream_head() + f"{KEY}\r\n".encode(), answers.CUT],
    ]
    async with facing(daemon, *config) as (server, running, stub):
        texts = []
        for echo in echoes:
            server.scripts.append(echo)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await say(stub, "hi")
            texts += [failed.value.details() or "", str(failed.value.trailing_metadata())]
            assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
            await say(stub, "hi")
        server.lookup = lambda _: answers.refusal("401 Unauthorized", text)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.ListModels(pb.ListModelsRequest())
        texts.append(str(failed.value))
        assert {each.headers["authorization"] for each in server.lookups} == {f"Bearer {KEY}"}
        await running.stop()
        texts += [json.dumps(line) for line in running.log]
        assert [each for each in texts if KEY in each] == []


async def test_a_key_file_that_changes_is_read_again(daemon: StartDaemon, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first\n")
    async with facing(daemon, "--api-key-file", str(path)) as (server, _, stub):
        await say(stub, "hi")
        assert server.requests[-1].headers["authorization"] == "Bearer first"
        # As Kubernetes does it: another file under the same name.
        (tmp_path / "new").write_text("second")
        (tmp_path / "new").rename(path)
        async with asyncio.timeout(10):
            while server.requests[-1].headers["authorization"] != "Bearer second":
                await say(stub, "hi")
        path.unlink()
        await say(stub, "hi")
        assert server.requests[-1].headers["authorization"] == "Bearer second"
