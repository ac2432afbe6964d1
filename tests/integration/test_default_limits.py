"""Answers that are larger than what a client with gRPC's default limits takes in one response."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import answers
import pytest
from answers import Answer
from parts import answer_of, plain_stub, read_history
from quirk import reply
from running import StartDaemon
from ruvd_client import AsyncClient
from ruvd_client.v1 import session_service_pb2 as client_pb
from upstream import Upstream, serving
from wire import events, say, turn

from ruvd.v1 import session_service_pb2 as pb

LONG = "Zürich " * (6_000_000 // 8)
SLICES = [LONG[start : start + 700] for start in range(0, len(LONG), 700)]
ARGUMENTS = f'"{LONG}"'
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}


def whole(**message: object) -> Answer:
    """An answer that comes as one JSON object."""
    return reply({"choices": [{"message": message, "finish_reason": "stop"}]})


@contextmanager
def no_more_than(upstream: Upstream, count: int) -> Iterator[None]:
    """Fails if the server gets more requests than this."""
    before = len(upstream.requests)
    yield
    assert len(upstream.requests) - before == count


def flags(upstream: Upstream) -> tuple[str, ...]:
    return ("--engine", "openai", "--base-url", upstream.url, "--model", "m")


def texts(messages: list[pb.Message]) -> list[str]:
    return [message.content for message in messages]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answers.text(*SLICES), id="deltas"),
        pytest.param(answers.text(LONG), id="one delta"),
        pytest.param(whole(content=LONG), id="one object"),
    ],
)
async def test_a_client_with_default_limits_gets_an_answer_of_six_megabytes(
    daemon: StartDaemon, answer: Answer
) -> None:
    """Its deltas are the whole text, and so is the message, which every later call has as well."""
    async with serving() as server:
        server.scripts.append(answer)
        async with daemon(*flags(server)) as running, plain_stub(running) as stub:
            request = turn("hi", "s", request_id="r")
            with no_more_than(server, 1):
                got = await events(stub, request)
                assert "".join(event.delta.text for event in got) == LONG
                assert answer_of(got).content == LONG
                assert got[-1].finished.finish_reason == pb.FINISH_REASON_STOP
                sequences = [event.sequence for event in got]
                assert sequences == sorted(sequences)
                again = await events(stub, request)
                assert again[-1] == got[-1]
                assert answer_of(again).content == LONG
                resume = pb.ResumeCompletionRequest(session_id="s", request_id="r")
                resumed = [response.event async for response in stub.ResumeCompletion(resume)]
                assert answer_of(resumed).content == LONG
            assert texts(await read_history(stub, "s")) == ["hi", LONG]
            assert (await say(stub, "and?", "s")).message.content == "Hello there!"
            assert server.requests[-1].body["messages"][1]["content"] == LONG
            assert texts(await read_history(stub, "s", 1)) == ["hi", LONG, "and?", "Hello there!"]


async def test_a_restarted_daemon_gives_a_large_answer_again(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'ruvd.db'}")
    request = turn("hi", "s", request_id="r")
    async with serving() as server:
        server.scripts.append(answers.text(*SLICES))
        async with daemon(*flags(server), *store) as running, plain_stub(running) as stub:
            first = await events(stub, request)
        async with daemon(*flags(server), *store) as running, plain_stub(running) as stub:
            with no_more_than(server, 0):
                again = await events(stub, request)
                assert again[-1] == first[-1]
                assert answer_of(again).content == LONG
                resume = pb.ResumeCompletionRequest(
                    completion_id=first[0].started.completion_id, after_sequence=1
                )
                resumed = [response.event async for response in stub.ResumeCompletion(resume)]
                assert resumed[-1] == first[-1]
                assert answer_of(resumed).content == LONG
                # A client that is cut among the parts gets them again, and not the end alone.
                resume.after_sequence = resumed[0].sequence
                cut = [response.event async for response in stub.ResumeCompletion(resume)]
                assert answer_of(cut).content == LONG
            assert texts(await read_history(stub, "s")) == ["hi", LONG]


async def test_reasoning_and_tool_calls_of_any_size_reach_a_client_with_default_limits(
    daemon: StartDaemon,
) -> None:
    async with serving() as server:
        server.scripts.append(whole(content="so", reasoning_content=LONG))
        server.scripts.append(whole(content=None, tool_calls=[CALL]))
        async with daemon(*flags(server)) as running, plain_stub(running) as stub:
            got = await events(stub, turn("why?", "s"))
            assert "".join(event.delta.reasoning for event in got) == LONG
            assert answer_of(got).reasoning == LONG
            assert answer_of(got).content == "so"
            request = turn("call", "s")
            request.options.tools.add(name="f")
            got = await events(stub, request)
            deltas = [event.delta.tool_call for event in got if event.delta.HasField("tool_call")]
            assert "".join(delta.arguments for delta in deltas) == ARGUMENTS
            assert [delta.name for delta in deltas if delta.name] == ["f"]
            [call] = answer_of(got).tool_calls
            assert call.arguments == ARGUMENTS
            history = await read_history(stub, "s")
            assert history[1].reasoning == LONG
            assert list(history[3].tool_calls) == [call]


async def test_an_item_of_a_batch_has_its_large_answer_before_its_result(
    daemon: StartDaemon,
) -> None:
    async with serving() as server:
        server.answer = lambda request: answers.text(LONG if request.last == "long" else "short")
        async with daemon(*flags(server)) as running, plain_stub(running) as stub:
            items = [turn(text) for text in ("short", "long", "short", "long")]
            got: dict[int, str] = {}
            parts: list[pb.CompletionEvent] = []
            async for response in stub.BatchComplete(pb.BatchCompleteRequest(items=items)):
                if response.HasField("message_part"):
                    parts.append(pb.CompletionEvent(message_part=response.message_part))
                elif response.HasField("result"):
                    finished = response.result.completion.finished
                    end = pb.CompletionEvent(finished=finished)
                    got[response.result.index] = answer_of([*parts, end]).content
                    parts.clear()
            assert got == {0: "short", 1: LONG, 2: "short", 3: LONG}


async def test_the_python_client_gives_large_answers_as_any_others(daemon: StartDaemon) -> None:
    async with serving() as server:
        server.answer = lambda _: answers.text(*SLICES)
        async with daemon(*flags(server)) as running, AsyncClient(running.socket) as client:
            async with client.complete("hi", session_id="s", request_id="r") as completion:
                pieces = [piece async for piece in completion]
                assert "".join(pieces) == LONG
                assert completion.finished is not None
                assert completion.finished.message.content == LONG
            async with client.complete("hi", session_id="s", request_id="r") as completion:
                assert "".join([piece async for piece in completion]) == LONG
            session = await client.get_session("s", client_pb.SESSION_VIEW_FULL)
            assert [message.content for message in session.messages] == ["hi", LONG]
            async with client.batch(["one", "two"]) as batch:
                assert [outcome.text() async for outcome in batch] == [LONG, LONG]


async def test_an_answer_for_which_there_is_no_memory_ends_with_its_reason(
    daemon: StartDaemon,
) -> None:
    limit = ("--max-memory-bytes", str(128 << 20), "--max-answer-bytes", str(16 << 20))
    async with serving() as server:
        server.answer = lambda _: answers.text(*SLICES, *SLICES)
        async with daemon(*flags(server), *limit) as running, plain_stub(running) as stub:
            calls = [events(stub, turn("hi", f"s{number}")) for number in range(4)]
            ends = []
            for got in await asyncio.gather(*calls):
                text, finished = answer_of(got).content, got[-1].finished
                assert (LONG + LONG).startswith(text)
                assert len(text.encode()) >= 2 << 20
                assert finished.finish_reason == pb.FINISH_REASON_LENGTH
                ends.append(finished.raw_finish_reason)
            assert set(ends) == {"max_memory_bytes"}
