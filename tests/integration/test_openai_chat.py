"""OpenAI's own client against the daemon, unchanged: chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from http_door import HTTP, base_url
from openai_package import client, openai
from pydantic import BaseModel
from running import RunningDaemon, StartDaemon
from wire import say

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo", "--echo-faults", *HTTP)
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}


@asynccontextmanager
async def served(daemon: StartDaemon, *flags: str) -> AsyncIterator[tuple[RunningDaemon, Any]]:
    async with daemon(*ECHO, *flags) as running, client(await base_url(running)) as api:
        yield running, api


def question(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


class Answer(BaseModel):
    text: str
    count: int


async def test_answers_streams_tools_and_structured_output(daemon: StartDaemon) -> None:
    async with served(daemon) as (_, api):
        assert [each.id async for each in api.models.list()] == ["echo"]
        whole = await api.chat.completions.create(model="echo", messages=question("hello you"))
        assert whole.choices[0].message.content == "hello you"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.prompt_tokens_details.cached_tokens == 0
        assert whole.usage.total_tokens == 4

        stream = await api.chat.completions.create(
            model="echo", messages=question("hello you"), stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == "hello you"
        assert len([text for text in texts if text]) == 2
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2

        async with api.chat.completions.stream(
            model="echo", messages=question("please look"), tools=[TOOL]
        ) as events:
            called = (await events.get_final_completion()).choices[0]
        assert called.finish_reason == "tool_calls"
        call = called.message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "look", {"text": "please look"},
        )  # fmt: skip
        result = {"role": "tool", "tool_call_id": call.id, "content": "found it"}
        messages = [*question("please look"), called.message.to_dict(), result]
        answered = await api.chat.completions.create(model="echo", messages=messages, tools=[TOOL])
        assert answered.choices[0].message.content == "found it"

        parsed = await api.chat.completions.parse(
            model="echo", messages=question("hi"), response_format=Answer
        )
        assert parsed.choices[0].message.parsed == Answer(text="hi", count=0)
        loose = await api.chat.completions.create(
            model="echo", messages=question("hi"), response_format={"type": "json_object"}
        )
        assert json.loads(loose.choices[0].message.content) == {"text": "hi"}


FAULTS = {
    "OVERLOADED": openai.InternalServerError,
    "ENGINE_RATE_LIMITED": openai.RateLimitError,
    "CONTEXT_TOO_LONG": openai.BadRequestError,
    "ENGINE_TIMEOUT": openai.InternalServerError,
    "PERMISSION_DENIED": openai.PermissionDeniedError,
    "SESSION_NOT_FOUND": openai.NotFoundError,
    "SESSION_BUSY": openai.ConflictError,
    "REQUEST_ID_REUSED": openai.UnprocessableEntityError,
    "INTERNAL": openai.InternalServerError,
}


async def test_errors_are_those_of_openais_client(daemon: StartDaemon) -> None:
    async with served(daemon) as (running, api):
        for reason, kind in FAULTS.items():
            with pytest.raises(kind) as caught:
                await api.chat.completions.create(
                    model="echo", messages=question(f"!fault {reason}")
                )
            expected = {"CONTEXT_TOO_LONG": "context_length_exceeded",
                        "ENGINE_RATE_LIMITED": "rate_limit_exceeded"}  # fmt: skip
            assert caught.value.code == expected.get(reason, reason.lower())
        with pytest.raises(openai.APIError, match="fault"):
            stream = await api.chat.completions.create(
                model="echo", messages=question("!fault ENGINE_UNAVAILABLE some text"), stream=True
            )
            async for _ in stream:
                pass
        with pytest.raises(openai.BadRequestError) as wrong:
            await api.chat.completions.create(
                model="echo", messages=[*question("a"), {"role": "robot"}], n=2, temperature=3
            )
        for path in ("messages[1].role", "n", "temperature"):
            assert f"{path}: " in wrong.value.message
        # Without x-should-retry the client would repeat a conflict, and this one in vain.
        patient = api.with_options(max_retries=3)
        with pytest.raises(openai.InternalServerError):
            await patient.chat.completions.create(
                model="echo", messages=question("!fault INTERNAL")
            )
        await patient.chat.completions.create(model="echo", messages=question("the last"))
        await running.logged("completion", reason="STOP")
        internal = [line for line in running.log if line.get("reason") == "INTERNAL"]
        assert len(internal) == 2


async def is_running(stub: Any, session_id: str) -> bool:
    try:
        found = await stub.GetSession(pb.GetSessionRequest(session_id=session_id))
    except grpc.aio.AioRpcError:
        return False
    return bool(found.session.running_completion_id)


async def test_a_client_that_goes_away_cancels_its_completion(daemon: StartDaemon) -> None:
    async with (
        served(daemon, "--echo-delay-seconds", "0.2") as (running, api),
        running.stub() as stub,
    ):
        long = question("word " * 3000)
        headers = {"X-Ruvd-Session-Id": "s"}
        whole = asyncio.create_task(
            api.chat.completions.create(model="echo", messages=long, extra_headers=headers)
        )
        async with asyncio.timeout(60):
            while not await is_running(stub, "s"):
                pass
        whole.cancel()
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")
        stream = await api.chat.completions.create(model="echo", messages=long, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await running.logged("completion failed", count=2, reason="COMPLETION_CANCELLED")
        kept = {"X-Ruvd-Session-Id": "t", "X-Ruvd-On-Disconnect": "continue"}
        stream = await api.chat.completions.create(
            model="echo", messages=question("one two three"), stream=True, extra_headers=kept
        )
        await stream.close()
        await running.logged("completion", session_id="t", reason="STOP")
        assert not [line for line in running.log if line.get("level") == "error"]


async def test_a_conversation_goes_on_over_grpc_and_back(daemon: StartDaemon) -> None:
    async with served(daemon) as (running, api), running.stub() as stub:
        chat = api.with_options(default_headers={"X-Ruvd-Session-Id": "s"}).chat.completions
        system = {"role": "system", "content": "be brief"}
        await chat.create(model="echo", messages=[system, *question("one")])
        over_grpc = await say(stub, "two", "s")
        assert over_grpc.message.content == "two"
        assert over_grpc.usage.prompt_tokens == 5
        last = await chat.create(model="echo", messages=question("three"))
        assert last.usage.prompt_tokens == 7
        assert last.usage.prompt_tokens_details.cached_tokens == 6
        request = pb.GetSessionRequest(session_id="s", view=pb.SESSION_VIEW_FULL)
        session = (await stub.GetSession(request)).session
        assert session.system_prompt == "be brief"
        assert [message.content for message in session.messages] == [
            "one", "one", "two", "two", "three", "three",
        ]  # fmt: skip
        id_ = last.id  # a completion over HTTP is one over gRPC
        events = stub.ResumeCompletion(pb.ResumeCompletionRequest(completion_id=id_))
        assert [each.event.finished.message.content async for each in events][-1] == "three"


async def test_odd_requests_leave_the_daemon_up(daemon: StartDaemon) -> None:
    async with served(daemon, "--max-request-bytes", "200000") as (running, api):
        url = await base_url(running)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            path, json_kind = "/chat/completions", {"content-type": "application/json"}
            for body in (b"\x00" * 1000, b"[" * 150_000, b'{"a":' * 30_000, b'"' * 100_000):
                refused = await http.post(path, content=body, headers=json_kind)
                assert refused.status_code == 400, refused.text
                assert set(refused.json()["error"]) == {"message", "type", "param", "code"}

            async def endless() -> AsyncIterator[bytes]:
                for _ in range(100):
                    yield b" " * 10_000

            large = await http.post(path, content=endless(), headers=json_kind)
            assert large.status_code == 413
            known = await http.post(path, content=b" " * 300_000, headers=json_kind)
            assert (known.status_code, known.json()["error"]["code"]) == (413, "request_too_large")
        again = await api.chat.completions.create(model="echo", messages=question("still here"))
        assert again.choices[0].message.content == "still here"
        errors = [line for line in running.log if line.get("level") == "error"]
        assert not errors
