"""Items of a batch run where their sessions are, whichever replica the batch is sent to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Files
from parts import joined
from peer_replicas import (
    SLOW,
    WORDS,
    database,
    empty_store,
    failure,
    peer_flags,
    reason,
    replicas,
    rest,
    until_delta,
)
from postgres import Server
from running import RunningDaemon, StartDaemon
from wire import contents, say, turn

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.admin.v1 import admin_service_pb2_grpc as admin_grpc
from ruvd.core import ids
from ruvd.v1 import session_service_pb2 as pb

# An answer that takes longer than what a test does meanwhile.
LONG = " ".join([WORDS] * 60)
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with database() as started:
        yield started


@pytest.fixture
def store(server: Server) -> str:
    return empty_store(server)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def batch(stub: Any, *items: pb.CompleteRequest) -> list[pb.BatchResult]:
    """Returns the results of a batch in the order of its items, with whole messages."""
    results: dict[int, pb.BatchResult] = {}
    parts: list[pb.MessagePart] = []
    async for response in stub.BatchComplete(pb.BatchCompleteRequest(items=items)):
        if response.HasField("message_part"):
            parts.append(response.message_part)
        elif response.HasField("result"):
            finished = response.result.completion.finished
            if finished.message_in_parts:
                finished.message.CopyFrom(joined(parts))
                parts.clear()
            results[response.result.index] = response.result
    assert not parts
    return [results[index] for index in range(len(items))]


def answers(results: list[pb.BatchResult]) -> list[str]:
    return [each.completion.finished.message.content for each in results]


def owners(results: list[pb.BatchResult]) -> set[str]:
    """Returns the short ids of the replicas at which the items ran."""
    return {ids.replica_of(each.completion.completion_id) for each in results}


async def short_id(running: RunningDaemon) -> str:
    return ids.short((await running.logged("replica joined"))["replica"])


async def until(is_so: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not await is_so():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)


@asynccontextmanager
async def counting(
    running: RunningDaemon,
) -> AsyncIterator[Callable[[int], Coroutine[Any, Any, None]]]:
    """Yields what waits until so many completions run or wait at a daemon."""
    async with grpc.aio.insecure_channel(running.admin_socket) as channel:
        admin: Any = admin_grpc.AdminServiceStub(channel)

        async def until_running(count: int) -> None:
            async def is_so() -> bool:
                answer = await admin.GetStatus(admin_pb.GetStatusRequest())
                return bool(answer.status.running_completions == count)

            await until(is_so)

        yield until_running


async def test_items_wait_in_the_queue_of_the_owner_and_one_that_interrupts_comes_first(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with (
        replicas(daemon, tmp_path, store, 3, *flags) as (running, stubs),
        counting(running[0]) as until_running,
    ):
        await say(stubs[0], "begin", "s")
        long = stubs[0].Complete(turn(LONG, "s"))
        await until_delta(long)
        two = asyncio.create_task(batch(stubs[1], turn("second", "s"), turn("fourth", "s")))
        await until_running(2)
        third = asyncio.create_task(rest(stubs[2].Complete(turn("third", "s"))))
        await until_running(3)
        rejecting = turn("no", "s", if_busy=pb.IF_BUSY_REJECT)
        (at_owner,), (refused,) = [await batch(stub, rejecting) for stub in stubs[:2]]
        assert refused == at_owner
        assert refused.error.code == grpc.StatusCode.ABORTED.value[0]
        first = await batch(stubs[2], turn("first", "s", if_busy=pb.IF_BUSY_INTERRUPT))
        assert await reason(long) == "COMPLETION_INTERRUPTED"
        results = await two
        assert answers(first + results) == ["first", "second", "fourth"]
        assert (await third)[-1].finished
        assert owners([*first, results[0]]) == {await short_id(running[0])}
        metrics = await stubs[0].GetSessionMetrics(pb.GetSessionMetricsRequest())
        assert metrics.metrics.session_completions == 2  # items count as those of a batch there
        told = await contents(stubs[0], "s")
        assert told[::2] == told[1::2] == ["begin", "first", "second", "third", "fourth"]


async def test_the_result_of_an_item_is_the_owners(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    sizes = ("--max-message-bytes", "4000000", "--max-log-bytes", "8000000")
    async with replicas(daemon, tmp_path, store, 2, *flags, *sizes) as (_, stubs):
        item = turn(WORDS, "s", request_id="r")
        call = stubs[0].Complete(item)
        begun = await until_delta(call)
        wrong = turn("other", "s", request_id="r")
        while_running = await asyncio.gather(*(batch(stub, item, wrong) for stub in stubs))
        finished = (await rest(call))[-1].finished
        large = turn("x" * 3_500_000, "t", request_id="r")
        await rest(stubs[0].Complete(large))
        afterwards = [await batch(stub, item, wrong, large) for stub in stubs]
        for at_owner, elsewhere in (while_running, afterwards):
            assert elsewhere == at_owner
            assert elsewhere[0].completion.completion_id == begun[0].started.completion_id
            assert elsewhere[0].completion.session_id == "s"
            assert elsewhere[0].completion.model == "echo"
            assert elsewhere[0].completion.finished == finished
            assert elsewhere[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert answers(afterwards[1])[2] == large.messages[0].content


async def test_an_item_ends_at_the_owner_with_its_batch(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with (
        replicas(daemon, tmp_path, store, 2, *flags) as (running, stubs),
        counting(running[0]) as until_running,
    ):
        await say(stubs[0], "begin", "s")
        long = stubs[0].Complete(turn(LONG, "s"))
        await until_delta(long)
        items = pb.BatchCompleteRequest(items=[turn("a", "s")])
        cancelled = stubs[1].BatchComplete(items)
        await until_running(2)
        cancelled.cancel()
        await until_running(1)
        late = await failure(stubs[1].BatchComplete(items, timeout=1))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_running(1)
        long.cancel()
        await until_running(0)
        assert await contents(stubs[1], "s") == ["begin", "begin"]


async def test_an_item_whose_owner_is_killed_runs_again_if_it_has_a_request_id(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "slow").mkdir()
    flags = peer_flags(files)
    async with (
        replicas(daemon, tmp_path / "slow", store, 1, *flags, *SLOW) as (running, (owner,)),
        replicas(daemon, tmp_path, store, 1, *flags) as (_, (other,)),
        counting(running[0]) as until_running,
    ):
        for session_id in ("s", "t"):
            await say(owner, "begin", session_id)
        calls = [owner.Complete(turn(LONG, each)) for each in ("s", "t")]
        first = [(await until_delta(call))[0].started.completion_id for call in calls]
        items = [turn(LONG, "s", request_id="r"), turn(f"other {LONG}", "t")]
        results = asyncio.create_task(batch(other, *items))
        await until_running(4)
        for call in calls:
            call.cancel()

        async def are_running() -> bool:
            found = [
                await owner.GetSession(pb.GetSessionRequest(session_id=each)) for each in ("s", "t")
            ]
            now = {each.session.running_completion_id for each in found}
            return not now & {"", *first}

        await until(are_running)
        running[0].kill()
        again, lost = await results
        assert again.completion.finished.message.content == LONG
        assert lost.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert not lost.error.details  # as of a connection that breaks
        assert await contents(other, "s") == ["begin", "begin", LONG, LONG]
        assert await contents(other, "t") == ["begin", "begin"]
