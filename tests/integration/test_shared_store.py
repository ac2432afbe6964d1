"""Several daemons with one PostgreSQL database go on with each other's sessions."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from postgres import Server, running
from running import RunningDaemon, StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

LEASE_SECONDS = 2.0
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as started:
            yield started


@pytest.fixture
def store(server: Server) -> str:
    """The setting `store` of daemons that share an empty database."""
    conninfo = server.new_schema()
    schema = conninfo.partition("search_path=")[2].rstrip("'")
    return f"postgresql://ruvd@/postgres?host={server.directory}&options=-csearch_path%3D{schema}"


@asynccontextmanager
async def daemons(
    daemon: StartDaemon, folder: Path, store: str, count: int, *flags: str
) -> AsyncIterator[tuple[list[RunningDaemon], list[Any]]]:
    async with AsyncExitStack() as stack:
        running = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir(exist_ok=True)
            running.append(
                await stack.enter_async_context(
                    daemon(
                        *("--engine", "echo", "--store", store, *flags),
                        *("--store-lease-seconds", str(LEASE_SECONDS)),
                        folder=place,
                    )
                )
            )
        yield running, [await stack.enter_async_context(each.stub()) for each in running]


async def test_each_daemon_sees_the_turns_of_the_others(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    async with daemons(daemon, tmp_path, store, 3) as (_, stubs):
        for number in range(9):
            answer = await say(stubs[number % 3], f"turn {number}", "s")
            assert answer.exchange_count == number + 1
        assert (await contents(stubs[1], "s"))[::2] == [f"turn {number}" for number in range(9)]


async def test_a_request_is_answered_once_whichever_daemon_it_reaches(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    async with daemons(daemon, tmp_path, store, 2, "--echo-nonce") as (_, stubs):
        answers = await asyncio.gather(
            *(say(stubs[number % 2], "same", "s", request_id="r") for number in range(8)),
            return_exceptions=True,
        )
        # Two daemons may both try to create the session: one of them is told so, and repeats it.
        failed = [each for each in answers if isinstance(each, BaseException)]
        assert all(isinstance(each, grpc.aio.AioRpcError) for each in failed)
        told = await say(stubs[0], "same", "s", request_id="r")
        assert {each.message.content for each in answers if isinstance(each, pb.Finished)} <= {
            told.message.content
        }
        assert len(await contents(stubs[1], "s")) == 2


async def test_turns_of_one_session_wait_for_each_other_over_all_daemons(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    flags = ("--echo-delay-seconds", "0.005")
    async with daemons(daemon, tmp_path, store, 3, *flags) as (_, stubs):
        await say(stubs[0], "begin", "s")
        counts = await asyncio.gather(
            *(say(stubs[number % 3], f"turn number {number}", "s") for number in range(12))
        )
        assert sorted(each.exchange_count for each in counts) == list(range(2, 14))
        texts = await contents(stubs[2], "s")
        assert len(set(texts[::2])) == 13


async def test_a_busy_session_is_refused_at_another_daemon_if_the_caller_wants_that(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    flags = ("--echo-delay-seconds", "0.5")
    async with daemons(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        await say(stubs[0], "begin", "s")
        long = asyncio.create_task(say(stubs[0], "a b c d e f g h", "s"))
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    await say(stubs[1], "x", "s", if_busy=pb.IF_BUSY_REJECT)
                except grpc.aio.AioRpcError as error:
                    assert details(error)[0] == "SESSION_BUSY"  # noqa: PT017
                    break
        await long


async def test_the_sessions_of_a_killed_daemon_go_on_at_another_one(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    flags = ("--echo-delay-seconds", "0.5")
    async with daemons(daemon, tmp_path, store, 2, *flags) as (running, stubs):
        await say(stubs[0], "begin", "s")
        call = stubs[0].Complete(turn("a b c d e f", "s", request_id="r"))
        async for response in call:
            if response.event.HasField("delta"):
                break
        running[0].kill()
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await say(stubs[1], "a b c d e f", "s", request_id="r")
        assert answer.exchange_count == 2
        assert (await contents(stubs[1], "s"))[::2] == ["begin", "a b c d e f"]


async def test_a_daemon_that_was_frozen_past_its_lease_commits_nothing(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    flags = ("--echo-delay-seconds", "0.3")
    async with daemons(daemon, tmp_path, store, 2, *flags) as (running, stubs):
        await say(stubs[0], "begin", "s")
        call = stubs[0].Complete(turn("a b c d e f", "s"))
        async for response in call:
            if response.event.HasField("delta"):
                break
        running[0].process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await say(stubs[1], "other", "s")).exchange_count == 2
        finally:
            running[0].process.send_signal(signal.SIGCONT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                assert not response.event.HasField("finished")
        assert details(caught.value)[0] == "OWNERSHIP_LOST"
        # Its lease is renewed, and its next turn sees the other one.
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await say(stubs[0], "again", "s")).exchange_count == 3
        assert (await contents(stubs[1], "s"))[::2] == ["begin", "other", "again"]


async def test_a_crash_of_the_server_loses_no_acknowledged_turn(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as server:
            store = f"postgresql://ruvd@/postgres?host={server.directory}"
            async with daemons(daemon, tmp_path, store, 2) as (_, stubs):
                acknowledged: dict[str, list[str]] = {name: [] for name in "abcd"}
                stopping, said = asyncio.Event(), asyncio.Semaphore(0)
                reasons: set[str] = set()
                choose = random.Random(3)

                async def talk(name: str) -> None:
                    number = 0
                    while not stopping.is_set():
                        text = f"turn {number}"
                        try:
                            await say(
                                choose.choice(stubs), text, name, request_id=f"{name}{number}"
                            )
                        except grpc.aio.AioRpcError as error:
                            reasons.add(details(error)[0])
                            await asyncio.sleep(0.1)
                        else:
                            acknowledged[name].append(text)
                            number += 1
                            said.release()

                talks = [asyncio.create_task(talk(name)) for name in "abcd"]
                for _ in range(3):
                    async with asyncio.timeout(WAIT_SECONDS):
                        for _ in range(20):
                            await said.acquire()
                    await asyncio.to_thread(server.stop, signal.SIGQUIT)
                    await asyncio.to_thread(server.start)
                stopping.set()
                async with asyncio.timeout(WAIT_SECONDS):
                    await asyncio.gather(*talks)
                for name, texts in acknowledged.items():
                    assert (await contents(stubs[0], name))[::2] == texts
                # A call may also wait for the server, and then not fail at all.
                assert reasons <= {"STORE_UNAVAILABLE", "SESSION_BUSY", "OWNERSHIP_LOST"}


async def test_a_stateless_call_needs_no_store(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    async with daemons(daemon, tmp_path, store, 1) as (_, stubs):
        assert await events(stubs[0], turn("hello"))


async def test_max_inflight_of_a_tenant_holds_over_two_daemons(
    daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    flags = ("--echo-delay-seconds", "0.2", "--tenant-limits", "default;max_inflight=1")
    async with daemons(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        held = stubs[0].Complete(turn("word " * 2000))
        await anext(aiter(held))
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                while True:
                    await say(stubs[1], "x")
        assert details(error.value)[0] == "QUOTA_EXCEEDED"
        held.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    await say(stubs[1], "x")
                    break
                except grpc.aio.AioRpcError as refusal:
                    assert details(refusal)[0] == "QUOTA_EXCEEDED"  # noqa: PT017
                    await asyncio.sleep(0.1)
