"""Callers that ask for too much: the daemon refuses with a reason and goes on serving others."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
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


async def test_a_refused_request_does_not_stay_in_memory(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo", "--store", "memory") as running:
        for _ in range(5):
            await send(running, EMPTY_MESSAGE * 1_900_000)
        before = memory_bytes(running)
        for _ in range(15):
            await send(running, EMPTY_MESSAGE * 1_900_000)
        assert memory_bytes(running) - before < 30 << 20  # the requests themselves are 57 MB


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
    limits = ("--max-sessions", "20000", "--max-inflight", "50")
    async with daemon(*flags, *limits) as running, AsyncExitStack() as stack:
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


async def test_the_calls_of_one_connection_wait_there_and_leave_room_for_others(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.05", "--store", "memory")
    limits = ("--max-inflight", "10", "--max-connection-calls", "3")
    async with daemon(*flags, *limits) as running, AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]  # or they would share one connection
        flooding, other = [
            pb_grpc.SessionServiceStub(
                await stack.enter_async_context(grpc.aio.insecure_channel(running.socket, options))
            )
            for _ in range(2)
        ]
        flood = [asyncio.create_task(outcome(flooding, turn("hi"))) for _ in range(60)]
        for _ in range(5):
            assert await outcome(other, turn("hi")) == "answered"
        assert set(await asyncio.gather(*flood)) == {"answered"}


async def test_a_connection_that_reads_nothing_begins_no_more_calls_than_one_may_have(
    daemon: StartDaemon,
) -> None:
    """It can begin and reset any number of calls otherwise, and each of them takes time."""
    flags = ("--engine", "echo", "--store", "memory", "--max-connection-calls", "3")
    async with daemon(*flags) as running, running.stub() as stub:
        requests = [turn("hi", f"raw-{number}") for number in range(10)]
        writer = await call_without_reading(running, *requests, method="Complete")
        begun: set[str] = set()
        async with asyncio.timeout(60):
            while len(begun) < 3:
                assert await outcome(stub, turn("hi", "other")) == "answered"
                listed = await stub.ListSessions(pb.ListSessionsRequest())
                begun = {each.id for each in listed.sessions} - {"other"}
        writer.close()
        assert begun == {"raw-0", "raw-1", "raw-2"}


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
        assert {call.result() for call in calls} <= {"answered", "OVERLOADED"}
        # Without a budget they take more than 600 MB. What gRPC has begun to receive on a busy
        # machine, before the daemon's code runs, comes on top of the limit.
        assert most < limit + (64 << 20)
        # Garbage is collected, and its memory returned, every 5 s.
        async with asyncio.timeout(60):
            while await outcome(stub, turn("hi", "after")) != "answered":  # noqa: ASYNC110
                await asyncio.sleep(0.5)


async def test_a_large_request_that_is_being_answered_holds_no_memory_twice(
    daemon: StartDaemon,
) -> None:
    """Ten of them would reserve 60 MB, besides the memory that they have."""
    flags = ("--engine", "echo", "--echo-delay-seconds", "1", "--store", "memory")
    limit = ("--max-memory-bytes", str(160 << 20))
    async with daemon(*flags, *limit) as running, AsyncExitStack() as stack:
        stub = await stack.enter_async_context(running.stub())
        for number in range(10):
            request = turn("and " * 1000, f"s{number}")
            request.messages.insert(0, pb.Message(role=pb.ROLE_USER, content="x" * 1_000_000))
            call = stub.Complete(request)
            stack.callback(call.cancel)
            for _ in range(2):
                assert await call.read() != grpc.aio.EOF


def large_session(megabytes: int) -> list[list[pb.Message]]:
    """The messages of a large history, in portions for one request each."""
    roles = (pb.ROLE_USER, pb.ROLE_ASSISTANT)
    return [
        [
            pb.Message(role=roles[number % 2], content=f"{portion}-{number} {'x' * 99_990}")
            for number in range(10)
        ]
        for portion in range(megabytes)
    ]


async def make_session(stub: Any, session_id: str, megabytes: int) -> list[str]:
    """Makes a session with a large history, and returns the texts of its messages."""
    await stub.CreateSession(pb.CreateSessionRequest(session_id=session_id))
    portions = large_session(megabytes)
    for messages in portions:
        await stub.AppendMessages(
            pb.AppendMessagesRequest(session_id=session_id, messages=messages)
        )
    return [message.content for messages in portions for message in messages]


@asynccontextmanager
async def plain_stub(daemon: RunningDaemon) -> AsyncIterator[Any]:
    """The service as a client with gRPC's default limits calls it."""
    async with grpc.aio.insecure_channel(daemon.socket) as channel:
        yield pb_grpc.SessionServiceStub(channel)


def page_of(session_id: str, token: str = "", size: int = 1000) -> pb.GetSessionRequest:
    return pb.GetSessionRequest(
        session_id=session_id, view=pb.SESSION_VIEW_FULL, page_size=size, page_token=token
    )


async def read_pages(stub: Any, session_id: str) -> list[list[str]]:
    """The texts of a session, page by page."""
    pages, token = [], ""
    while True:
        response = await stub.GetSession(page_of(session_id, token))
        assert response.ByteSize() <= 4 << 20
        pages.append([message.content for message in response.session.messages])
        token = response.next_page_token
        if not token:
            assert response.session.message_count == sum(map(len, pages))
            return pages


@pytest.fixture(params=["memory", "sqlite"])
def store_flags(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    kind: str = request.param
    return ("--store", kind if kind == "memory" else f"sqlite:{tmp_path / 'ruvd.db'}")


async def test_a_history_that_fits_no_response_is_refused_whole_and_read_page_by_page(
    daemon: StartDaemon, store_flags: tuple[str, ...]
) -> None:
    async with daemon("--engine", "echo", *store_flags) as running, plain_stub(running) as stub:
        texts = await make_session(stub, "s", 9)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSession(pb.GetSessionRequest(session_id="s", view=pb.SESSION_VIEW_FULL))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value) == ("RESPONSE_TOO_LARGE", [], None)
        assert "page_size" in (caught.value.details() or "")
        pages = await read_pages(stub, "s")
        assert [text for page in pages for text in page] == texts
        assert len(pages) == 3
        first = await stub.GetSession(page_of("s", size=3))
        assert [message.content for message in first.session.messages] == texts[:3]


async def test_a_turn_between_two_pages_only_adds_messages_at_the_end(
    daemon: StartDaemon, store_flags: tuple[str, ...]
) -> None:
    async with daemon("--engine", "echo", *store_flags) as running, plain_stub(running) as stub:
        texts = await make_session(stub, "s", 1)
        first = await stub.GetSession(page_of("s", size=6))
        assert first.session.message_count == 10
        await say(stub, "more", "s")
        last = await stub.GetSession(page_of("s", first.next_page_token))
        read = [message.content for message in (*first.session.messages, *last.session.messages)]
        assert read[:10] == texts
        assert len(read) == last.session.message_count == 12
        assert not last.next_page_token


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"page_size": -1}, ["page_size"]),
        ({"page_size": 1001}, ["page_size"]),
        ({"page_token": "MUAweDEuMHArMA=="}, ["page_size"]),
        ({"page_size": 1, "page_token": "x"}, ["page_token"]),
        ({"page_size": 1, "page_token": "MUAweDFwOTk5OTk5"}, ["page_token"]),  # 1@0x1p999999
        ({"page_size": 1, "view": pb.SESSION_VIEW_BASIC}, ["page_size"]),
    ],
)
async def test_a_wrong_page_is_refused(
    daemon: StartDaemon, fields: dict[str, Any], wrong: list[str]
) -> None:
    async with daemon("--engine", "echo") as running, plain_stub(running) as stub:
        await say(stub, "hi", "s")
        fields = {"session_id": "s", "view": pb.SESSION_VIEW_FULL, **fields}
        refusal = await refused(stub.GetSession(pb.GetSessionRequest(**fields)))
        assert refusal is not None
        assert details(refusal)[:2] == ("INVALID_REQUEST", wrong)
        foreign = page_of("s", "MUAweDEuMHArMA==", 1)  # of a session created at 1 s
        refusal = await refused(stub.GetSession(foreign))
        assert refusal is not None
        assert details(refusal)[0] == "SESSION_NOT_FOUND"


async def test_an_answer_ends_at_its_setting_and_fits_a_clients_default_limit(
    daemon: StartDaemon,
) -> None:
    flags = ("--max-message-bytes", "3500000", "--max-answer-bytes", str(3 << 20))
    async with daemon("--engine", "echo", *flags) as running, plain_stub(running) as stub:
        finished = await say(stub, "x" * 3_500_000, "s")
        assert finished.finish_reason == pb.FINISH_REASON_LENGTH
        assert finished.message.content == "x" * (3 << 20)
        assert [len(text) for page in await read_pages(stub, "s") for text in page] == [
            3_500_000,
            3 << 20,
        ]


async def test_a_session_that_was_made_anew_between_two_pages_is_noticed(
    daemon: StartDaemon, store_flags: tuple[str, ...]
) -> None:
    async with daemon("--engine", "echo", *store_flags) as running, plain_stub(running) as stub:
        await make_session(stub, "s", 1)
        token = (await stub.GetSession(page_of("s", size=6))).next_page_token
        await stub.EndSession(pb.EndSessionRequest(session_id="s"))
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetSession(page_of("s", token))
            assert details(caught.value)[0] == "SESSION_NOT_FOUND"
            await stub.EndSession(pb.EndSessionRequest(session_id="s", allow_missing=True))
            await make_session(stub, "s", 1)


async def test_fifty_readers_of_a_large_session_take_little_memory_and_stall_nobody(
    daemon: StartDaemon, store_flags: tuple[str, ...]
) -> None:
    flags = ("--engine", "echo", *store_flags)
    async with daemon(*flags) as running, AsyncExitStack() as stack:
        stub = await stack.enter_async_context(plain_stub(running))
        texts = await make_session(stub, "s", 15)
        stubs = [await stack.enter_async_context(plain_stub(running)) for _ in range(10)]
        before = peak_memory_bytes(running)
        readers = [asyncio.create_task(first_page(stubs[n % 10], "s")) for n in range(50)]
        slowest = 0.0
        while not all(reader.done() for reader in readers):
            began = time.perf_counter()
            await say(stub, "hi")
            slowest = max(slowest, time.perf_counter() - began)
        for reader in readers:
            assert await reader == texts[: len(await reader)]
        assert (
            peak_memory_bytes(running) - before
        ) >> 20 < 150  # of 50 x 33 MB before there were pages
        assert slowest < 3  # one of 11 s


async def first_page(stub: Any, session_id: str) -> list[str]:
    response = await stub.GetSession(page_of(session_id))
    return [message.content for message in response.session.messages]


async def call_without_reading(
    daemon: RunningDaemon,
    *requests: pb.GetSessionRequest | pb.CompleteRequest,
    method: str = "GetSession",
) -> asyncio.StreamWriter:
    """Makes calls and never reads: HTTP/2 lets the daemon send the first 64 KiB only."""
    _, writer = await asyncio.open_unix_connection(daemon.socket.removeprefix("unix:"))
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/ruvd.v1.SessionService/{method}",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for number, request in enumerate(requests):
        stream, data = 2 * number + 1, request.SerializeToString()
        http.send_headers(stream, list(headers.items()))
        http.send_data(stream, b"\0" + len(data).to_bytes(4, "big") + data, end_stream=True)
    writer.write(http.data_to_send())
    await writer.drain()
    return writer


async def test_readers_that_never_read_take_little_memory_and_hold_back_only_large_responses(
    daemon: StartDaemon, store_flags: tuple[str, ...]
) -> None:
    async with daemon("--engine", "echo", *store_flags) as running, plain_stub(running) as stub:
        await make_session(stub, "s", 8)
        await say(stub, "hi", "small")
        before = peak_memory_bytes(running)
        stuck = [await call_without_reading(running, page_of("s")) for _ in range(40)]
        async with asyncio.timeout(30):
            while (refusal := await refused(first_page(stub, "s"))) is None:
                pass  # until they hold all the room
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(refusal) == ("OVERLOADED", [], 1.0)
        began = time.perf_counter()
        assert await first_page(stub, "small") == ["hi", "hi"]
        listed = await stub.ListSessions(pb.ListSessionsRequest())
        assert [session.id for session in listed.sessions] == ["s", "small"]
        await say(stub, "still here", "small")
        assert time.perf_counter() - began < 1
        assert (peak_memory_bytes(running) - before) >> 20 < 150  # of 500
        for writer in stuck:
            writer.close()
        async with asyncio.timeout(30):
            while await refused(first_page(stub, "s")):
                pass


async def test_callers_who_go_while_they_are_answered_leave_no_traceback(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.001", "--store", "memory")
    async with daemon(*flags) as running, plain_stub(running) as stub:
        await make_session(stub, "s", 3)
        for _ in range(5):
            long = turn("word " * 3000)
            stuck = [
                await call_without_reading(running, long, method="Complete") for _ in range(10)
            ]
            stuck += [await call_without_reading(running, page_of("s")) for _ in range(4)]
            await say(stub, "hi")
            for writer in stuck:
                writer.transport.abort()
        await say(stub, "hi")
    assert not [line for line in running.log if "Traceback" in str(line)]


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError | None:
    """Waits for the call and returns its error, None if it succeeded."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_compressed_requests_do_not_grow_beyond_the_limit(daemon: StartDaemon) -> None:
    async with daemon("--engine", "echo", "--store", "memory") as running, running.stub() as stub:
        await say(stub, "hi")
        before = peak_memory_bytes(running)
        options = [("grpc.max_send_message_length", -1)]
        bomb = bytes(64 << 20)
        async with grpc.aio.insecure_channel(
            running.socket, options=options, compression=grpc.Compression.Gzip
        ) as channel:
            bombs = [complete_bytes(channel, bomb) for _ in range(20)]
            for code, reason, message in await asyncio.gather(*bombs):
                assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
                assert "message larger than max" in message  # what the clients look for
        assert (peak_memory_bytes(running) - before) >> 20 < 50  # of 1,280
        assert (await say(stub, "hi")).message.content == "hi"


async def test_a_request_slightly_above_the_limit_is_refused_with_a_reason(
    daemon: StartDaemon,
) -> None:
    async with daemon("--engine", "echo", "--store", "memory") as running:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(running.socket, options=options) as channel:
            code, reason, _ = await complete_bytes(channel, bytes((4 << 20) + (64 << 10)))
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
            code, reason, message = await complete_bytes(channel, bytes((4 << 20) + (64 << 10) + 1))
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
            assert "message larger than max" in message


async def complete_bytes(
    channel: grpc.aio.Channel, data: bytes
) -> tuple[grpc.StatusCode, str, str]:
    """Sends raw bytes as a Complete request; its status, reason and text."""
    complete: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(COMPLETE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in complete(data):
            pass
    return caught.value.code(), details(caught.value)[0], caught.value.details() or ""


def peak_memory_bytes(daemon: RunningDaemon) -> int:
    """The most memory that the daemon has ever had resident."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10
