"""Callers that ask for too much: the daemon refuses with a reason and goes on serving others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import psutil
import pytest
from running import RunningDaemon, StartDaemon
from wire import details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

EMPTY_MESSAGE = b"\x12\x00"  # of CompleteRequest.messages
COMPLETE = "/ruvd.v1.SessionService/Complete"


def memory_bytes(daemon: RunningDaemon) -> int:
    return int(psutil.Process(daemon.process.pid).memory_info().rss)


async def send(daemon: RunningDaemon, data: bytes) -> tuple[grpc.StatusCode, str, list[str]]:
    """Sends raw bytes as a Complete request; its status, reason and wrong fields."""
    async with grpc.aio.insecure_channel(daemon.socket) as channel:
        complete: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(COMPLETE)
        call = complete(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    reason, fields, _ = details(caught.value)
    return caught.value.code(), reason, fields


async def test_millions_of_empty_messages_are_refused_without_memory_for_them(
    daemon: StartDaemon,
) -> None:
    async with daemon("--engine", "echo", "--store", "memory") as running, running.stub() as stub:
        await say(stub, "hi")
        before = memory_bytes(running)
        bombs = [asyncio.create_task(send(running, EMPTY_MESSAGE * 1_900_000)) for _ in range(10)]
        while not all(bomb.done() for bomb in bombs):
            await say(stub, "hi")
        refused = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ["request"])
        assert [await bomb for bomb in bombs] == [refused] * 10
        assert memory_bytes(running) - before < 200 << 20  # the requests themselves are 38 MB


async def test_bytes_that_are_no_request_are_refused_with_a_reason(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo", "--store", "memory") as running, running.stub() as stub:
        code, reason, fields = await send(running, b"\xff\xff\xff")
        assert (code, reason, fields) == (
            grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ["request"]
        )  # fmt: skip
        assert (await say(stub, "hi")).message.content == "hi"
    assert not [line for line in running.log if "Traceback" in str(line)]


async def test_a_page_of_sessions_fits_a_clients_default_limit(daemon: StartDaemon) -> None:
    labels = {f"{number:03}-{'k' * 59}": "v" * 255 for number in range(64)}
    flags = ("--engine", "echo", "--store", "memory", "--max-sessions", "500")
    async with daemon(*flags) as running, running.stub() as stub:
        for number in range(300):
            await stub.CreateSession(
                pb.CreateSessionRequest(session_id=f"s{number}", labels=labels)
            )
        ids: list[str] = []
        token, pages = "", 0
        async with grpc.aio.insecure_channel(running.socket) as channel:
            lists = channel.unary_unary(
                "/ruvd.v1.SessionService/ListSessions",
                pb.ListSessionsRequest.SerializeToString,
                pb.ListSessionsResponse.FromString,
            )
            while True:
                page = await lists(pb.ListSessionsRequest(page_size=1000, page_token=token))
                ids += [session.id for session in page.sessions]
                token, pages = page.next_page_token, pages + 1
                if not token:
                    break
        assert ids == [f"s{number}" for number in range(300)]
        assert pages == 2


async def outcome(stub: pb_grpc.SessionServiceAsyncStub, request: pb.CompleteRequest) -> str:
    """`answered`, or the reason of the refusal, which must be there and say when to try again."""
    try:
        await events(stub, request)
    except grpc.aio.AioRpcError as error:
        reason, _, retry_seconds = details(error)
        return reason if reason and retry_seconds else f"no reason: {error}"
    return "answered"


async def test_ten_thousand_calls_at_once_each_end_with_an_answer_or_a_reason(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.5", "--store", "memory")
    async with daemon(*flags, "--max-sessions", "20000") as running, AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]  # or they would share one connection
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(running.socket, options))
            for _ in range(20)
        ]
        stubs = [pb_grpc.SessionServiceStub(channel) for channel in channels]
        outcomes = await asyncio.gather(
            *(outcome(stubs[number % 20], turn("hi", f"s{number}")) for number in range(10_000))
        )
    assert set(outcomes) == {"answered", "OVERLOADED"}


async def test_near_its_memory_limit_the_daemon_refuses_with_a_reason_and_recovers(
    daemon: StartDaemon,
) -> None:
    limit = 160 << 20
    flags = ("--engine", "echo", "--echo-delay-seconds", "1", "--store", "memory")
    async with daemon(*flags, "--max-memory-bytes", str(limit)) as running, running.stub() as stub:
        large = "x" * 700_000
        calls = [asyncio.create_task(outcome(stub, turn(large, f"s{i}"))) for i in range(150)]
        most = 0
        async with asyncio.timeout(60):
            while not all(call.done() for call in calls):
                most = max(most, memory_bytes(running))
                await asyncio.sleep(0.05)
        assert {call.result() for call in calls} == {"answered", "OVERLOADED"}
        assert most < limit
        assert await outcome(stub, turn("hi", "after")) == "answered"
