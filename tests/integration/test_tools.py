"""Tools over the whole way: call, result and answer in a session, cut, retried and restarted.

The echo engine calls a tool whose name is a word of the question, and answers a result with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import answers
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from running import StartDaemon
from upstream import Request, serving
from wire import contents, details, events, history, say, turn

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
SLOW = (*ECHO, "--echo-delay-seconds", "0.03")
ASK = 'What is the weather in Zürich 🌧, "today"?'
TOOLS = [
    pb.Tool(name="time"),
    pb.Tool(
        name="weather",
        description="What it is like somewhere.",
        parameters='{"type": "object", "properties": {"text": {"type": "string"}}}',
    ),
]
OPTIONS = pb.CompletionOptions(tools=TOOLS)


def result(call: pb.ToolCall, content: str = "12 °C,\n rain") -> pb.Message:
    return pb.Message(role=pb.ROLE_TOOL, tool_call_id=call.id, content=content)


def replying(session_id: str, *messages: pb.Message, **fields: Any) -> pb.CompleteRequest:
    return pb.CompleteRequest(session_id=session_id, messages=messages, options=OPTIONS, **fields)


async def ask(stub: Any, session_id: str) -> pb.ToolCall:
    """Ask for the weather; the call that the model makes."""
    finished = await say(stub, ASK, session_id, options=OPTIONS)
    assert finished.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    (call,) = finished.message.tool_calls
    return call


async def reply(stub: Any, session_id: str, *messages: pb.Message, **fields: Any) -> pb.Finished:
    return (await events(stub, replying(session_id, *messages, **fields)))[-1].finished


async def resume(stub: Any, completion_id: str, after: int) -> list[pb.CompletionEvent]:
    request = pb.ResumeCompletionRequest(completion_id=completion_id, after_sequence=after)
    return [response.event async for response in stub.ResumeCompletion(request)]


async def refused(call: Awaitable[object]) -> tuple[str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return details(caught.value)[:2]


def put_together(seen: Sequence[pb.CompletionEvent]) -> list[pb.ToolCall]:
    """The calls that the deltas of a stream make up."""
    calls: dict[int, pb.ToolCall] = {}
    for event in seen:
        if event.delta.HasField("tool_call"):
            delta = event.delta.tool_call
            if delta.index not in calls:
                calls[delta.index] = pb.ToolCall(id=delta.id, name=delta.name)
            calls[delta.index].arguments += delta.arguments
    return [call for _, call in sorted(calls.items())]


def as_bytes(messages: Sequence[pb.Message | pb.CompletionEvent]) -> list[bytes]:
    return [message.SerializeToString(deterministic=True) for message in messages]


# --- call, result, answer ----------------------------------------------------------------------


async def test_call_result_and_answer_are_stored_and_replayed_byte_for_byte(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*ECHO, "--store", f"sqlite:{tmp_path}/s.db")
    asking = turn(ASK, "s", options=OPTIONS, request_id="ask")
    async with daemon(*flags) as running, running.stub() as stub:
        asked = await events(stub, asking)
        call = asked[-1].finished.message.tool_calls[0]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"text": ASK})
        assert put_together(asked) == [call]
        assert asked[-1].finished.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        answering = replying("s", result(call), request_id="answer")
        answered = await events(stub, answering)
        assert answered[-1].finished.message.content == result(call).content
        assert answered[-1].finished.exchange_count == 1
        stored = await history(stub, "s")
        said = [asked[-1].finished.message, answered[-1].finished.message]
        assert stored == [asking.messages[0], said[0], result(call), said[1]]
        for request, seen in ((asking, asked), (answering, answered)):
            assert as_bytes(await events(stub, request)) == as_bytes(seen)
            for after in range(len(seen) + 1):
                rest = await resume(stub, seen[0].started.completion_id, after)
                assert as_bytes(rest) == as_bytes(seen[after:])
    async with daemon(*flags) as running, running.stub() as stub:
        assert as_bytes(await history(stub, "s")) == as_bytes(stored)
        for request, seen in ((asking, asked), (answering, answered)):
            for again in (
                await events(stub, request),
                await resume(stub, seen[0].started.completion_id, 0),
            ):
                assert as_bytes(again) == as_bytes(seen[-1:])
        assert as_bytes(await history(stub, "s")) == as_bytes(stored)
        assert (await say(stub, "thanks", "s")).exchange_count == 2


async def test_who_is_cut_in_a_tool_call_and_resumes_gets_the_whole_call_once(
    daemon: StartDaemon,
) -> None:
    async with daemon(*SLOW) as running, running.stub() as stub:

        async def cut_after(count: int) -> list[pb.ToolCall]:
            request = turn(ASK, f"s{count}", options=OPTIONS, disconnect_grace=Duration(seconds=10))
            seen = []
            stream = stub.Complete(request)
            async for response in stream:
                seen.append(response.event)
                if len(seen) == count:
                    break
            stream.cancel()
            seen += await resume(stub, seen[0].started.completion_id, count)
            assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
            stored = (await history(stub, f"s{count}"))[-1]
            assert seen[-1].finished.message == stored
            assert put_together(seen) == list(stored.tool_calls)
            return put_together(seen)

        calls = await asyncio.gather(*map(cut_after, range(1, 8)))
    assert all(each == calls[0] for each in calls)
    assert json.loads(calls[0][0].arguments) == {"text": ASK}


async def test_the_choice_of_a_tool_is_the_callers(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:

        async def called(text: str, choice: pb.ToolChoice) -> list[str]:
            options = pb.CompletionOptions(tools=TOOLS, tool_choice=choice)
            finished = await say(stub, text, options=options)
            return [call.name for call in finished.message.tool_calls]

        required = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)
        assert await called("hello", required) == ["time"]
        assert await called("hello", pb.ToolChoice(function="weather")) == ["weather"]
        assert await called(ASK, pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)) == []
        assert await called(ASK, pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO)) == ["weather"]


async def test_a_stateless_caller_brings_the_call_with_its_result(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        asked = await say(stub, ASK, options=OPTIONS)
        question = turn(ASK).messages[0]
        (call,) = asked.message.tool_calls
        finished = await reply(stub, "", question, asked.message, result(call, "fog"))
        assert finished.message.content == "fog"
        outcome = refused(reply(stub, "", question, result(call)))
        assert await outcome == ("INVALID_REQUEST", ["messages[1].tool_call_id"])


# --- what is refused, and what changes nothing ---------------------------------------------------


async def test_a_result_of_no_open_call_is_refused_by_its_field_and_changes_nothing(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        call = await ask(stub, "s")
        before = await history(stub, "s")
        stranger = pb.ToolCall(id="call_of_nobody")
        for messages, wrong in (
            ([result(stranger)], [0]),
            ([result(call), result(call)], [1]),
            ([turn("never mind").messages[0], result(call)], [1]),
        ):
            refusal = ("INVALID_REQUEST", [f"messages[{index}].tool_call_id" for index in wrong])
            assert await refused(reply(stub, "s", *messages)) == refusal
            append = pb.AppendMessagesRequest(session_id="s", messages=messages)
            assert await refused(stub.AppendMessages(append)) == refusal
        nameless = pb.Message(role=pb.ROLE_TOOL, content="x")
        assert await refused(reply(stub, "s", nameless)) == (
            "INVALID_REQUEST",
            ["messages[0].tool_call_id"],
        )
        assert await history(stub, "s") == before
        assert (await reply(stub, "s", result(call))).message.content == result(call).content
        # It is answered now.
        assert await refused(reply(stub, "s", result(call))) == (
            "INVALID_REQUEST",
            ["messages[0].tool_call_id"],
        )


async def test_every_wrong_option_of_a_call_is_named_at_once(daemon: StartDaemon) -> None:
    body = Struct()
    body.update({"cache_salt": "mine"})
    options = pb.CompletionOptions(
        presence_penalty=3,
        tools=[pb.Tool(name="a"), pb.Tool(name="a", parameters="{")],
        tool_choice=pb.ToolChoice(function="b"),
        response_format=pb.ResponseFormat(json_schema="[]"),
        extra_body=body,
    )
    async with daemon(*ECHO) as running, running.stub() as stub:
        reason, fields = await refused(say(stub, "hi", options=options))
    assert reason == "INVALID_REQUEST"
    assert sorted(fields) == [
        "options.extra_body.cache_salt",
        "options.presence_penalty",
        "options.response_format.json_schema",
        "options.tool_choice.function",
        "options.tools[1].name",
        "options.tools[1].parameters",
    ]


async def test_the_order_of_names_makes_no_other_request(daemon: StartDaemon) -> None:
    def request(body: dict[str, Any], bias: dict[int, float]) -> pb.CompleteRequest:
        extra = Struct()
        extra.update(body)
        options = pb.CompletionOptions(extra_body=extra, logit_bias=bias)
        return turn("one", "s", options=options, request_id="r")

    async with daemon(*ECHO) as running, running.stub() as stub:
        first = await events(stub, request({"a": {"x": 1, "y": 2.5}, "b": [1]}, {1: 1, 20: -2}))
        same = request({"b": [1.0], "a": {"y": 2.5, "x": 1}}, {20: -2, 1: 1})
        assert await events(stub, same) == first
        for other in (
            request({"a": {"x": 1, "y": 2.5}, "b": [2]}, {1: 1, 20: -2}),
            request({"a": {"x": 1, "y": 2.5}, "b": [1]}, {1: 1, 20: 2}),
            request({}, {1: 1, 20: -2}),
        ):
            assert (await refused(events(stub, other)))[0] == "REQUEST_ID_REUSED"
        assert await contents(stub, "s") == ["one", "one"]


async def test_of_a_tool_call_that_is_cut_nothing_is_kept(daemon: StartDaemon) -> None:
    async with daemon(*SLOW) as running, running.stub() as stub:
        await say(stub, "hello", "s")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in stub.Complete(turn(ASK, "s", options=OPTIONS, request_id="r")):
                if response.event.delta.tool_call.arguments:
                    cancel = pb.CancelCompletionRequest(
                        session_id="s", request_id="r", keep_partial=True
                    )
                    await stub.CancelCompletion(cancel)
        assert details(caught.value)[0] == "COMPLETION_CANCELLED"
        assert await contents(stub, "s") == ["hello", "hello"]


# --- other ways on -------------------------------------------------------------------------------


async def test_a_result_that_was_appended_is_answered_without_new_messages(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        call = await ask(stub, "s")
        append = pb.AppendMessagesRequest(session_id="s", messages=[result(call)], request_id="a")
        for _ in range(2):
            session = (await stub.AppendMessages(append)).session
            assert (session.message_count, session.exchange_count) == (3, 1)
        finished = await reply(stub, "s")
        assert finished.message.content == result(call).content
        assert finished.exchange_count == 1


async def test_a_result_may_come_with_the_next_question(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        call = await ask(stub, "s")
        finished = await reply(stub, "s", result(call), turn("and tomorrow?").messages[0])
        assert (finished.message.content, finished.exchange_count) == ("and tomorrow?", 2)


async def test_a_fork_in_the_middle_of_a_tool_exchange_goes_its_own_way(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with (
        daemon(*ECHO, "--store", f"sqlite:{tmp_path}/s.db") as running,
        running.stub() as stub,
    ):
        await say(stub, "hello", "s")
        call = await ask(stub, "s")
        await stub.ForkSession(pb.ForkSessionRequest(session_id="s", new_session_id="f"))
        before = pb.ForkSessionRequest(session_id="s", new_session_id="g", exchange_count=1)
        await stub.ForkSession(before)
        assert (await reply(stub, "s", result(call, "sun"))).message.content == "sun"
        assert (await reply(stub, "f", result(call, "snow"))).message.content == "snow"
        # Its history ends before the call.
        assert await refused(reply(stub, "g", result(call))) == (
            "INVALID_REQUEST",
            ["messages[0].tool_call_id"],
        )
        assert (await contents(stub, "s"))[-2:] == ["sun", "sun"]
        assert (await contents(stub, "f"))[-2:] == ["snow", "snow"]
        assert (await history(stub, "f"))[:4] == (await history(stub, "s"))[:4]
        assert await contents(stub, "g") == ["hello", "hello"]


@pytest.mark.parametrize(("keep", "most"), [(0, 1), (1, 1), (1, 2), (2, 3)])
async def test_a_trim_never_parts_a_result_from_its_call(
    daemon: StartDaemon, keep: int, most: int
) -> None:
    def answer(request: Request) -> answers.Answer:
        if request.body["messages"][-1]["role"] == "tool" or "weather" not in request.last:
            return answers.text("fine")
        calls = [(f"{name}_{len(server.requests)}", "weather", ["{", "}"]) for name in ("a", "b")]
        return answers.streamed(
            answers.deltas(*answers.tool_deltas(*calls), finish_reason="tool_calls")
        )

    async with serving() as server:
        server.answer = answer
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m")
        async with daemon(*flags) as running, running.stub() as stub:
            window = pb.ContextWindow(keep_exchanges=keep, max_exchanges=most)
            await stub.CreateSession(pb.CreateSessionRequest(session_id="s", context_window=window))
            for text in ("one", "weather?", "two", "weather?", "weather?", "three", "weather?"):
                finished = await say(stub, text, "s", options=OPTIONS)
                if calls := finished.message.tool_calls:
                    assert finished.finish_reason == pb.FINISH_REASON_TOOL_CALLS
                    results = [result(call) for call in reversed(calls)]
                    assert (await reply(stub, "s", *results)).message.content == "fine"
    assert len(server.requests) == 11
    trimmed = [len(request.body["messages"]) for request in server.requests]
    assert trimmed[-1] < 25  # the whole history would be
    for request in server.requests:
        wanted: set[str] = set()
        assert request.body["messages"][0]["role"] == "user"
        for message in request.body["messages"]:
            if message["role"] == "tool":
                wanted.remove(message["tool_call_id"])
            else:
                assert not wanted
                wanted = {call["id"] for call in message.get("tool_calls", ())}
        assert not wanted


async def test_the_models_of_the_engine_are_listed(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        listed = await stub.ListModels(pb.ListModelsRequest())
        assert (list(listed.models), listed.default_model) == (["echo"], "echo")
