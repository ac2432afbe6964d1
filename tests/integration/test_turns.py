"""Many callers on one session: order, take-over, limits, and what they must never do to a turn.

Where a prompt has to be seen, the core runs here with a scripted engine; everything else is a
daemon with the echo engine, whose prompt tokens say how much of the history it was sent.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest
from fakes import FrozenClock, ScriptedEngine, done
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from running import StartDaemon
from wire import contents, details, events, say, turn

from ruvd.completion import Completion, CompletionRef, CompletionRequest
from ruvd.completions import CompletionPolicy, Completions
from ruvd.errors import (
    CompletionCancelled,
    CompletionInterrupted,
    RequestIdReused,
    RuvdError,
    SessionNotFound,
)
from ruvd.lanes import Holder
from ruvd.model import CompletionEvent, ContextWindow, IfBusy, Message, Role
from ruvd.ports import EngineText, Event
from ruvd.sessions import SessionPolicy, Sessions
from ruvd.stores.memory import MemoryStore
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


# --- at the core, where the prompts are seen ------------------------------------------------


class Core:
    """The core on a memory store and a scripted engine."""

    def __init__(self, **policy: Any) -> None:
        self.engine, self.clock, self.seen = ScriptedEngine(), FrozenClock(), list[Event]()
        self.store = MemoryStore()
        window = ContextWindow(max_exchanges=0)
        self.sessions = Sessions(
            self.store, self.clock, self.seen.append, SessionPolicy(context_window=window)
        )
        self.completions = Completions(
            self.sessions, self.engine, self.clock, self.seen.append, CompletionPolicy(**policy)
        )

    def start(self, text: str, session_id: str = "s", **fields: Any) -> Completion:
        messages = (Message(Role.USER, text),)
        return self.completions.start(CompletionRequest(messages, session_id, **fields))

    async def history(self) -> list[str]:
        state = await self.sessions.get("s", with_messages=True)
        return [message.content for message in state.messages or ()]


async def collect(completion: Completion) -> list[CompletionEvent]:
    async with aclosing(completion.events()) as stream:
        return [event async for event in stream]


async def outcome(completion: Completion) -> type[RuvdError] | None:
    """What a completion failed with; None if it finished."""
    try:
        await collect(completion)
    except RuvdError as error:
        return type(error)
    return None


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_fifty_callers_go_in_order_of_arrival_and_each_prompt_has_the_answer_before() -> None:
    core = Core()
    completions = [core.start(f"question {index}") for index in range(50)]
    await asyncio.gather(*map(collect, completions))
    assert core.engine.most_running == 1
    history: list[str] = []
    for index, request in enumerate(core.engine.requests):
        history.append(f"question {index}")
        assert [message.content for message in request.messages] == history
        history.append(f"answer {index + 1}")
    assert await core.history() == history


async def test_interrupters_take_only_the_running_turn_and_go_before_who_waits() -> None:
    core = Core()
    gate = asyncio.Event()
    core.engine.scripts = [
        [EngineText("a"), asyncio.Event()],
        [EngineText("b"), asyncio.Event()],
        [EngineText("c"), gate, done()],
    ]
    running, *waiting = [core.start(text) for text in ("one", "two", "three")]
    await settle()
    first = core.start("four", if_busy=IfBusy.INTERRUPT)
    await settle()
    second = core.start("five", if_busy=IfBusy.INTERRUPT)
    await settle()
    gate.set()
    ended = await asyncio.gather(*map(outcome, [running, *waiting, first, second]))
    assert ended == [CompletionInterrupted, None, None, CompletionInterrupted, None]
    assert core.engine.most_running == 1
    history = await core.history()
    assert history[::2] == ["five", "two", "three"]


async def test_an_interrupter_after_the_end_of_a_session_does_not_go_before_the_end() -> None:
    core = Core()
    await collect(core.start("zero"))
    async with core.sessions.lanes.turn("s", Holder()):
        end = asyncio.create_task(core.sessions.end("s"))
        await settle()
        late = core.start("one", if_busy=IfBusy.INTERRUPT)
        await settle()
    await end
    assert await outcome(late) is None
    assert await core.history() == ["one", "answer 2"]


@pytest.mark.parametrize("how", ["failed", "committed"])
async def test_forgetting_an_old_completion_leaves_a_running_one_its_request_id(how: str) -> None:
    core = Core(retention_seconds=10)
    if how == "failed":
        core.engine.scripts = [[asyncio.Event()]]
    old = core.start("one", request_id="r")
    await settle()
    old.cancel(CompletionCancelled("left"))
    await outcome(old)
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("once"), done()]]
    running = core.start("one", request_id="r")
    if how == "failed":
        await settle()
    core.clock.advance(11)
    attached = core.start("one", request_id="r")
    gate.set()
    assert await outcome(running) is None
    assert await outcome(attached) is None
    assert attached is running
    assert core.completions.running == 0
    assert (await core.history())[1:] == ["once" if how == "failed" else "answer 1"]


@pytest.mark.parametrize("keep_partial", [False, True])
async def test_a_request_id_repeated_while_its_completion_is_being_cancelled_is_not_cancelled(
    keep_partial: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    core = Core()
    core.engine.scripts = [[EngineText("part"), asyncio.Event()]]
    first = core.start("one", request_id="r")
    await settle()
    first.cancel(CompletionCancelled("left"), keep_partial=keep_partial)
    again = core.start("one", request_id="r")
    assert await outcome(again) is None
    assert await core.history() == ["one", "part" if keep_partial else "answer 2"]
    assert core.completions.running == 0


async def test_an_append_that_a_completion_waited_for_has_used_the_request_id() -> None:
    core = Core()
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    running = core.start("one")
    await settle()
    append = asyncio.create_task(core.sessions.append("s", [Message(Role.USER, "more")], "r"))
    await asyncio.sleep(0)
    late = core.start("two", request_id="r")
    await settle()
    gate.set()
    ended = await asyncio.gather(outcome(running), append, outcome(late))
    assert (ended[0], ended[2]) == (None, RequestIdReused)
    assert await core.history() == ["one", "a", "more"]


async def test_who_resumes_while_the_request_is_being_repeated_gets_what_is_missing() -> None:
    core = Core()
    events = await collect(core.start("one", request_id="r"))
    repeated = core.start("one", request_id="r")
    ref = CompletionRef(session_id="s", request_id="r")
    async with aclosing(core.completions.resume(ref, 2)) as missing:
        assert [event async for event in missing] == events[2:]
    assert await collect(repeated) == events


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
            for busy in (pb.IF_BUSY_QUEUE, pb.IF_BUSY_INTERRUPT):
                error = await refused(events(stub, turn("three", "s", if_busy=busy)))
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


async def test_a_session_that_a_cancelled_turn_would_have_created_is_not_there() -> None:
    core = Core()
    core.engine.scripts = [[EngineText("part"), asyncio.Event()]]
    running = core.start("one")
    await settle()
    running.cancel(CompletionCancelled("left"))
    assert await outcome(running) is CompletionCancelled
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")


# --- memory ---------------------------------------------------------------------------------


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
