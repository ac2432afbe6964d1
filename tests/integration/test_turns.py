"""Many callers on one session: order, take-over, limits, and what they must never do to a turn.

The echo engine's prompt tokens say how much of the history it was sent. Where the prompt itself
has to be seen, see `tests/unit/test_callers.py`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from running import StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
WHOLE_HISTORY = ("--max-exchanges", "0")


def slow(seconds: float = 0.02) -> tuple[str, ...]:
    return (*ECHO, "--echo-delay-seconds", str(seconds))


def words(count: int) -> str:
    return " ".join(f"w{index}" for index in range(count))


def reason(error: BaseException) -> tuple[grpc.StatusCode, str]:
    assert isinstance(error, grpc.aio.AioRpcError), repr(error)
    return error.code(), details(error)[0]


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110  # the daemon cannot set our events
            await asyncio.sleep(0.01)


@asynccontextmanager
async def holding(stub: Any, session_id: str, answer_words: int) -> AsyncIterator[Any]:
    """While a turn of so many words runs in a session; the call that it belongs to."""
    call = stub.Complete(turn(words(answer_words), session_id))
    await anext(aiter(call))
    try:
        yield call
    finally:
        call.cancel()


async def arrived(stub: Any, session_id: str, request_id: str) -> None:
    """Wait until the daemon has a call: whoever resumes it is not refused but waits."""
    ref = pb.ResumeCompletionRequest(session_id=session_id, request_id=request_id)

    async def known() -> bool:
        try:
            await anext(aiter(stub.ResumeCompletion(ref, timeout=0.1)))
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return True

    await until(known)


async def queued(stub: Any, session_id: str, *texts: str) -> list[asyncio.Task[pb.Finished]]:
    """Calls that wait for the session, one behind the other."""
    tasks = []
    for text in texts:
        call = say(stub, text, session_id, request_id=text)
        tasks.append(asyncio.create_task(call))
        await arrived(stub, session_id, text)
    return tasks


# --- QUEUE ----------------------------------------------------------------------------------


async def test_fifty_queued_callers_over_grpc_give_fifty_exchanges_each_after_the_one_before(
    daemon: StartDaemon,
) -> None:
    flags = (*ECHO, "--echo-nonce", *WHOLE_HISTORY)
    async with daemon(*flags) as running, running.stub() as stub:
        answers = await asyncio.gather(*(say(stub, f"q{index}", "s") for index in range(50)))
        history = await contents(stub, "s")
    assert len(history) == 100
    assert set(history[::2]) == {f"q{index}" for index in range(50)}
    in_turn = sorted(answers, key=lambda finished: finished.exchange_count)
    for index, finished in enumerate(in_turn):
        assert finished.exchange_count == index + 1
        assert finished.message.content == history[2 * index + 1]
        # One word said, two answered, in each exchange before; one word now.
        assert finished.usage.prompt_tokens == 3 * index + 1


async def test_callers_who_arrive_one_after_the_other_are_answered_in_that_order(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(0.05)) as running, running.stub() as stub:
        async with holding(stub, "s", 200):
            tasks = await queued(stub, "s", *(f"q{index}" for index in range(8)))
        finished = await asyncio.gather(*tasks)
        assert [each.exchange_count for each in finished] == list(range(1, 9))
        assert (await contents(stub, "s"))[::2] == [f"q{index}" for index in range(8)]


async def test_a_queued_caller_waits_no_longer_than_its_deadline(daemon: StartDaemon) -> None:
    async with daemon(*slow()) as running, running.stub() as stub:
        async with holding(stub, "s", 300):
            began = time.monotonic()
            error = await refused(events(stub, turn("late", "s"), timeout=0.2))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - began < 3
            await running.logged("completion failed", reason="COMPLETION_CANCELLED")
            [waiting] = await queued(stub, "s", "next")
        assert (await waiting).exchange_count == 1
        assert await contents(stub, "s") == ["next", "next"]


async def test_update_and_append_wait_their_turn_between_the_turns(daemon: StartDaemon) -> None:
    async with daemon(*slow(), *WHOLE_HISTORY) as running, running.stub() as stub:
        await say(stub, "zero", "s")
        async with asyncio.TaskGroup() as group:
            first = stub.Complete(turn(words(30), "s"))
            await anext(aiter(first))
            message = pb.Message(role=pb.ROLE_USER, content="by the way")
            append = pb.AppendMessagesRequest(session_id="s", messages=[message])
            appended = group.create_task(_await(stub.AppendMessages(append)))
            update = pb.UpdateSessionRequest(
                session_id="s",
                labels={"a": "b"},
                idle_timeout=Duration(seconds=60),
                update_mask=FieldMask(paths=["labels", "idle_timeout"]),
            )
            updated = group.create_task(_await(stub.UpdateSession(update)))
            seen = [response.event async for response in first]
            assert seen[-1].finished.exchange_count == 2
        assert appended.result().session.message_count == 5
        assert updated.result().session.labels == {"a": "b"}
        assert updated.result().session.message_count >= 4
        after = await say(stub, "last", "s")
        assert after.exchange_count == 4
        assert after.usage.prompt_tokens == 2 + 60 + 3 + 1
        session = (await stub.GetSession(pb.GetSessionRequest(session_id="s"))).session
        assert dict(session.labels) == {"a": "b"}
        assert session.idle_timeout.seconds == 60


async def _await(call: Awaitable[Any]) -> Any:
    return await call


async def test_complete_without_messages_answers_what_was_appended(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, running.stub() as stub:
        await say(stub, "one", "s")
        nothing = pb.CompleteRequest(session_id="s", request_id="r")
        assert details(await refused(events(stub, nothing)))[:2] == (
            "INVALID_REQUEST",
            ["messages"],
        )
        message = pb.Message(role=pb.ROLE_USER, content="two")
        await stub.AppendMessages(pb.AppendMessagesRequest(session_id="s", messages=[message]))
        finished = (await events(stub, nothing))[-1].finished
        assert (finished.message.content, finished.exchange_count) == ("two", 2)
        assert finished.usage.prompt_tokens == 3
        assert (await events(stub, nothing))[-1].finished == finished
        assert await contents(stub, "s") == ["one", "one", "two", "two"]


# --- INTERRUPT and REJECT -------------------------------------------------------------------


async def test_a_storm_of_interrupters_loses_nothing_that_was_finished(
    daemon: StartDaemon,
) -> None:
    chance = random.Random(7)
    async with daemon(*slow(0.005)) as running, running.stub() as stub:

        async def call(index: int) -> str | tuple[grpc.StatusCode, str]:
            await asyncio.sleep(chance.uniform(0, 1.5))
            busy = pb.IF_BUSY_INTERRUPT if index % 3 == 0 else pb.IF_BUSY_QUEUE
            try:
                finished = await say(stub, f"{index} {words(10)}", "s", if_busy=busy)
            except grpc.aio.AioRpcError as error:
                return reason(error)
            assert finished.message.content == f"{index} {words(10)}"
            return finished.message.content

        results = await asyncio.gather(*map(call, range(90)))
        history = await contents(stub, "s")
    finished = [result for result in results if isinstance(result, str)]
    others = {result for result in results if not isinstance(result, str)}
    assert history[::2] == history[1::2]
    assert sorted(history[::2]) == sorted(finished)
    assert others == {(grpc.StatusCode.ABORTED, "COMPLETION_INTERRUPTED")}


async def test_the_interrupted_is_told_and_the_waiting_keep_their_order(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow()) as running, running.stub() as stub:
        await say(stub, "zero", "s")
        first = asyncio.create_task(say(stub, words(400), "s", request_id="first"))
        await arrived(stub, "s", "first")
        waiting = await queued(stub, "s", "two", "three")
        interrupter = say(stub, "now", "s", if_busy=pb.IF_BUSY_INTERRUPT)
        assert (await interrupter).exchange_count == 2
        assert reason(await refused(first)) == (
            grpc.StatusCode.ABORTED,
            "COMPLETION_INTERRUPTED",
        )
        assert [(await each).exchange_count for each in waiting] == [3, 4]
        assert (await contents(stub, "s"))[::2] == ["zero", "now", "two", "three"]


async def test_reject_is_told_that_the_session_is_busy(daemon: StartDaemon) -> None:
    async with daemon(*slow()) as running, running.stub() as stub, holding(stub, "s", 300):
        error = await refused(events(stub, turn("no", "s", if_busy=pb.IF_BUSY_REJECT)))
        assert reason(error) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
        assert details(error)[2] == 1.0
        await say(stub, "elsewhere", "t", if_busy=pb.IF_BUSY_REJECT)


# --- limits ---------------------------------------------------------------------------------


async def test_more_callers_than_the_queue_takes_are_told_to_come_again(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow(), "--max-queue", "2") as running, running.stub() as stub:
        async with holding(stub, "s", 300):
            waiting = await queued(stub, "s", "one", "two")
            error = await refused(events(stub, turn("three", "s")))
            assert reason(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert details(error)[2] == 1.0
            await say(stub, "elsewhere", "t")
        assert [(await each).exchange_count for each in waiting] == [1, 2]


async def test_more_completions_than_max_inflight_are_told_to_come_again(
    daemon: StartDaemon,
) -> None:
    async with (
        daemon(*slow(), "--max-inflight", "2") as running,
        running.stub() as stub,
        holding(stub, "s", 300),
        holding(stub, "", 300) as second,
    ):
        error = await refused(events(stub, turn("three", "t")))
        assert reason(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert details(error)[2] == 1.0
        second.cancel()
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")
        await say(stub, "three", "t")


# --- EndSession, and no sessions at all -----------------------------------------------------


async def test_ending_a_session_ends_everyone_in_it_and_nobody_makes_it_anew(
    daemon: StartDaemon,
) -> None:
    async with daemon(*slow()) as running, running.stub() as stub:
        await say(stub, "zero", "s")
        calls = [
            asyncio.create_task(say(stub, words(300), "s", request_id=str(index)))
            for index in range(21)
        ]
        for index in range(21):
            await arrived(stub, "s", str(index))
        await stub.EndSession(pb.EndSessionRequest(session_id="s"))
        for call in calls:
            assert reason(await refused(call)) == (grpc.StatusCode.ABORTED, "SESSION_ENDED")
        error = await refused(stub.GetSession(pb.GetSessionRequest(session_id="s")))
        assert reason(error) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
        started = (await events(stub, turn("new", "s")))[0].started
        assert started.session_created
        assert await contents(stub, "s") == ["new", "new"]


async def test_a_daemon_without_sessions_says_so_and_completes_stateless_calls(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO, "--no-sessions-enabled") as running, running.stub() as stub:
        message = pb.Message(role=pb.ROLE_USER, content="hi")
        calls: list[Awaitable[object]] = [
            events(stub, turn("hi", "s")),
            stub.CreateSession(pb.CreateSessionRequest(session_id="s")),
            stub.GetSession(pb.GetSessionRequest(session_id="s")),
            stub.ListSessions(pb.ListSessionsRequest()),
            stub.UpdateSession(pb.UpdateSessionRequest(session_id="s", labels={"a": "b"})),
            stub.AppendMessages(pb.AppendMessagesRequest(session_id="s", messages=[message])),
            stub.EndSession(pb.EndSessionRequest(session_id="s", allow_missing=True)),
            stub.ForkSession(pb.ForkSessionRequest(session_id="s")),
        ]
        for call in calls:
            error = await refused(call)
            assert reason(error) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "SESSIONS_DISABLED",
            )
        assert (await say(stub, "hello there")).message.content == "hello there"


async def test_cancelled_streams_leave_no_memory_behind(daemon: StartDaemon) -> None:
    flags = (*slow(0.01), "--max-logs-bytes", "1000000")
    async with daemon(*flags) as running, running.stub() as stub:
        process = psutil.Process(running.pid)

        async def cut(index: int) -> None:
            call = stub.Complete(turn(words(200), f"s{index % 40}" if index % 2 else ""))
            await anext(aiter(call))
            call.cancel()

        async def thousand() -> float:
            for begin in range(0, 1000, 20):
                await asyncio.gather(*map(cut, range(begin, begin + 20)))
            return process.memory_info().rss / (1 << 20)

        first = await thousand()
        await thousand()
        last = await thousand()
        assert last - first < 6, f"{first:.1f} MiB after 1,000, {last:.1f} MiB after 3,000"
        gc.collect()
        assert (await say(stub, "still well", "s1")).message.content == "still well"
