"""OpenAI's own client against the daemon, unchanged: responses and conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from http_door import HTTP, base_url
from openai_package import client, openai
from pydantic import BaseModel
from running import RunningDaemon, StartDaemon
from wire import say

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo", "--echo-faults", *HTTP)
LOOK = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
}


@asynccontextmanager
async def served(
    daemon: StartDaemon, *flags: str, **more: Any
) -> AsyncIterator[tuple[RunningDaemon, Any]]:
    async with daemon(*ECHO, *flags, **more) as running, client(await base_url(running)) as api:
        yield running, api


class Answer(BaseModel):
    text: str
    count: int


async def test_responses_tools_structured_output_and_streams(daemon: StartDaemon) -> None:
    async with served(daemon) as (_, api):
        first = await api.responses.create(model="echo", input="hello you", instructions="be brief")
        assert (first.output_text, first.status) == ("hello you", "completed")
        assert (first.usage.input_tokens, first.usage.output_tokens) == (4, 2)
        second = await api.responses.create(
            model="echo", input="and again", previous_response_id=first.id
        )
        assert second.usage.input_tokens_details.cached_tokens == 6
        assert second.conversation.id == first.conversation.id

        called = await api.responses.create(model="echo", input="please look", tools=[LOOK])
        call = called.output[0]
        assert (call.type, call.name, json.loads(call.arguments)) == (
            "function_call", "look", {"text": "please look"},
        )  # fmt: skip
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "found it"}
        answered = await api.responses.create(
            model="echo", input=[result], previous_response_id=called.id, tools=[LOOK]
        )
        assert answered.output_text == "found it"

        parsed = await api.responses.parse(model="echo", input="hi", text_format=Answer)
        assert parsed.output_parsed == Answer(text="hi", count=0)

        async with api.responses.stream(model="echo", input="one two three") as stream:
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert (deltas, final.output_text) == (["one", " two", " three"], "one two three")
        assert (await api.responses.retrieve(final.id)).output_text == "one two three"
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve("resp_none")
        with pytest.raises(openai.BadRequestError) as wrong:
            await api.responses.create(model="echo", input=[{"role": "robot"}], temperature=7)
        for path in ("input[0].role", "temperature"):
            assert f"{path}: " in wrong.value.message


async def test_a_stream_that_was_cut_goes_on_after_its_last_event(daemon: StartDaemon) -> None:
    async with served(daemon, "--echo-delay-seconds", "0.02") as (running, api):
        words = " ".join(f"w{n}" for n in range(60))
        stream = await api.responses.create(model="echo", input=words, background=True, stream=True)
        seen = []
        async for event in stream:
            seen.append(event)
            if len(seen) == 10:
                break
        await stream.close()
        given, last = seen[0].response.id, seen[-1].sequence_number
        rest = await api.responses.retrieve(given, stream=True, starting_after=last)
        seen += [event async for event in rest]
        texts = [event.delta for event in seen if event.type == "response.output_text.delta"]
        assert "".join(texts) == words
        numbers = [event.sequence_number for event in seen]
        assert numbers == sorted(set(numbers))
        assert seen[-1].response.output_text == words
        running_one = await api.responses.create(
            model="echo", input="word " * 2000, background=True
        )
        assert running_one.status == "queued"
        cancelled = await api.responses.cancel(running_one.id)
        assert cancelled.status == "cancelled"
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")


async def test_a_conversation_begun_over_http_goes_on_over_grpc_and_back_and_survives_a_restart(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO, "--store", "sqlite:s.db") as running:
        folder = running.folder
        async with client(await base_url(running)) as api, running.stub() as stub:
            made = await api.conversations.create(
                metadata={"topic": "tests"},
                items=[{"type": "message", "role": "developer", "content": "be brief"}],
            )
            first = await api.responses.create(model="echo", input="one", conversation=made.id)
            assert (await say(stub, "two", made.id)).usage.prompt_tokens == 5
            third = await api.responses.create(model="echo", input="three", conversation=made.id)
            assert third.usage.input_tokens == 7
            request = pb.GetSessionRequest(session_id=made.id, view=pb.SESSION_VIEW_FULL)
            session = (await stub.GetSession(request)).session
            assert dict(session.labels) == {"topic": "tests"}
            assert [message.content for message in session.messages] == [
                "one", "one", "two", "two", "three", "three",
            ]  # fmt: skip
            assert (await api.responses.retrieve(first.id)).output_text == "one"
        await running.stop()
        async with (
            daemon(*ECHO, "--store", "sqlite:s.db", folder=folder) as again,
            client(await base_url(again)) as api,
        ):
            assert (await api.responses.retrieve(third.id)).output_text == "three"
            more = await api.responses.create(
                model="echo", input="four", previous_response_id=third.id
            )
            assert more.conversation.id == made.id
            items = [each async for each in api.conversations.items.list(made.id, limit=3)]
            texts = [item.content[0].text for item in items]
            assert texts == [
                "four", "four", "three", "three", "two", "two", "one", "one", "be brief",
            ]  # fmt: skip
            updated = await api.conversations.update(made.id, metadata={"topic": "more"})
            assert updated.metadata == {"topic": "more"}
            assert (await api.conversations.delete(made.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await api.conversations.retrieve(made.id)
