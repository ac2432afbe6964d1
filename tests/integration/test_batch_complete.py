"""BatchComplete against a real daemon process."""

from __future__ import annotations

import asyncio
from typing import Any

import answers
import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from running import StartDaemon
from upstream import serving
from wire import contents, details, say, turn

from ruvd.v1 import session_service_pb2 as pb


async def batch(
    stub: Any, *items: pb.CompleteRequest, max_concurrency: int = 0
) -> tuple[dict[int, pb.BatchResult], pb.BatchSummary]:
    request = pb.BatchCompleteRequest(items=items, max_concurrency=max_concurrency)
    responses = [response async for response in stub.BatchComplete(request)]
    assert responses[-1].HasField("summary")
    results = [response.result for response in responses[:-1]]
    assert sorted(result.index for result in results) == list(range(len(items)))
    return {result.index: result for result in results}, responses[-1].summary


def texts(results: dict[int, pb.BatchResult]) -> list[str]:
    return [results[index].completion.finished.message.content for index in range(len(results))]


def reason(result: pb.BatchResult) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in result.error.details:
        detail.Unpack(info)
    return str(info.reason)


async def test_every_item_has_its_outcome_and_the_summary_adds_up(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo") as d, d.stub() as stub:
        results, summary = await batch(stub, *(turn(f"number {n}") for n in range(50)))
        assert texts(results) == [f"number {n}" for n in range(50)]
        assert results[7].completion.model == "echo"
        assert (summary.succeeded, summary.failed, summary.usage.completion_tokens) == (50, 0, 100)
        assert summary.wall_time.ToNanoseconds() > 0
        assert summary.total_latency.ToNanoseconds() > 0
        results, summary = await batch(stub)
        assert (results, summary.succeeded) == ({}, 0)


async def test_a_wrong_item_fails_alone_and_names_its_fields(daemon: StartDaemon) -> None:
    wrong = pb.CompleteRequest(session_id="no spaces", options=pb.CompletionOptions(top_p=7))
    async with daemon("--engine", "echo") as d, d.stub() as stub:
        results, summary = await batch(
            stub, turn("fine"), wrong, turn("who?", "nobody", require_existing=True)
        )
        assert (summary.succeeded, summary.failed) == (1, 2)
        assert results[0].completion.finished.message.content == "fine"
        assert (results[1].error.code, reason(results[1])) == (
            code_pb2.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )
        bad = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad) for detail in results[1].error.details)
        assert {violation.field for violation in bad.field_violations} >= {
            "session_id",
            "options.top_p",
        }
        assert reason(results[2]) == "SESSION_NOT_FOUND"


async def test_what_concerns_the_call_refuses_the_call(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo") as d, d.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await batch(stub, turn("x"), max_concurrency=-1)
        assert details(refused.value)[:2] == ("INVALID_REQUEST", ["max_concurrency"])


async def test_sessions_in_a_batch_keep_their_order_beside_a_caller_of_their_own(
    daemon: StartDaemon,
) -> None:
    async with daemon("--engine", "echo") as d, d.stub() as stub:
        items = [turn(f"{name} {n}", name) for n in range(10) for name in ("a", "b", "c")]
        (_, summary), _ = await asyncio.gather(batch(stub, *items), say(stub, "and I", "a"))
        assert summary.succeeded == 30
        for name in ("a", "b", "c"):
            asked = [text for text in (await contents(stub, name))[::2] if text != "and I"]
            assert asked == [f"{name} {n}" for n in range(10)]
        assert len(await contents(stub, "a")) == 22


async def test_a_batch_that_a_crash_cut_runs_only_what_was_not_committed(
    daemon: StartDaemon,
) -> None:
    """With nonces: an item that ran twice would have two answers."""
    items = [turn(f"number {n}", f"s{n}", request_id=f"r{n}") for n in range(60)]
    flags = ("--engine", "echo", "--echo-nonce", "--echo-delay-seconds", "0.02")
    seen: dict[int, str] = {}
    async with daemon(*flags, "--store", "sqlite:s.db") as d:
        async with d.stub() as stub:
            with pytest.raises(grpc.aio.AioRpcError):
                request = pb.BatchCompleteRequest(items=items, max_concurrency=4)
                async for response in stub.BatchComplete(request):
                    result = response.result
                    seen[result.index] = result.completion.finished.message.content
                    if len(seen) == 20:
                        d.kill()
        await d.ended()
        assert 20 <= len(seen) < 60
        again = daemon(*flags, "--store", "sqlite:s.db", folder=d.folder)
        async with again as restarted, restarted.stub() as stub:
            results, summary = await batch(stub, *items)
            assert summary.succeeded == 60
            answers = texts(results)
            assert {index: answers[index] for index in seen} == seen
            for n, answer in enumerate(answers):
                assert await contents(stub, f"s{n}") == [f"number {n}", answer]


async def test_stateless_items_are_found_again_within_the_retention(daemon: StartDaemon) -> None:
    items = [turn(f"number {n}", request_id=f"r{n}") for n in range(10)]
    async with daemon("--engine", "echo", "--echo-nonce") as d, d.stub() as stub:
        first, _ = await batch(stub, *items)
        again, _ = await batch(stub, *items)
        assert texts(first) == texts(again)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_caller_who_goes_stops_everything_in_it(daemon: StartDaemon, how: str) -> None:
    slow = [turn("word " * 200, f"s{n}") for n in range(20)]
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.05")
    async with daemon(*flags) as d, d.stub() as stub:
        request = pb.BatchCompleteRequest(items=slow, max_concurrency=8)
        timeout = 1.0 if how == "deadline" else None
        call = stub.BatchComplete(request, timeout=timeout)
        if how == "cancel":
            for n in range(8):
                await _running(stub, f"s{n}")
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            async for _ in call:
                pass
        await d.logged("completion failed", count=8)
        assert not (await stub.ListSessions(pb.ListSessionsRequest())).sessions


async def _running(stub: Any, session_id: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await stub.GetSession(pb.GetSessionRequest(session_id=session_id))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_on_the_embedded_engine_chat_finds_a_slot_beside_a_batch(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "llama", "--llama-threads", "1", "--llama-answer-tokens", "100")
    async with daemon(*flags, "--llama-slots", "2") as d, d.stub() as stub:
        options = pb.CompletionOptions(max_tokens=40, temperature=0)
        items = [turn(f"Tell me a story of {n} ships", options=options) for n in range(6)]
        running = asyncio.create_task(batch(stub, *items))
        await d.logged("completion")  # the first of the batch has ended, the second runs
        chat = await say(stub, "hello", "chat", options=pb.CompletionOptions(max_tokens=2))
        assert not running.done()
        assert chat.timings.queue.ToNanoseconds() < 1e9
        results, summary = await running
        assert summary.succeeded == 6
        assert all(texts(results))


async def test_an_odd_answer_of_the_server_fails_its_item_and_not_the_batch(
    daemon: StartDaemon,
) -> None:
    """A delay beyond all reason, counts beyond 2^63, and half a character in a tool call."""
    usage = {"prompt_tokens": 2**70, "completion_tokens": 2**64}
    half = b'data: {"choices":[{"delta":{"tool_calls":[{"id":"\\ud83d","function":{"name":"f",'
    half += b'"arguments":"\\ud83d"}}]},"finish_reason":"\\ud83d"}]}\n\n'
    odd = {
        "delay": answers.refusal("503 Busy", "later", Retry_After="9" * 30),
        "counts": answers.streamed(answers.deltas({"content": "fine"}, usage=usage)),
        "half": answers.streamed([half]),
        "good": answers.text("good"),
    }
    async with serving() as server:
        server.answer = lambda request: odd[request.last]
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m", "--retries", "0")
        async with daemon(*flags) as d, d.stub() as stub:
            results, summary = await batch(stub, *map(turn, odd))
    assert reason(results[0]) == "ENGINE_UNAVAILABLE"
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in results[0].error.details)
    assert retry.retry_delay.ToSeconds() == 3600
    assert not results[1].completion.finished.HasField("usage")
    assert results[1].completion.finished.message.content == "fine"
    assert results[2].completion.finished.message.tool_calls[0].arguments == "\ufffd"
    assert results[3].completion.finished.message.content == "good"
    assert (summary.succeeded, summary.failed) == (3, 1)
