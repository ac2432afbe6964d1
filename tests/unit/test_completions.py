"""Turns: order, commit, cancellation. The store is the memory store, the engine is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
from core import Core, collect, failed, settle
from fakes import ScriptedEngine, done

from ruvd.core.completions.completion import CompletionPolicy
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionInterrupted,
    ContextTooLong,
    EngineRejected,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SessionBusy,
    SessionEnded,
    SessionEvicted,
    SessionExpired,
    SessionLimit,
    SessionNotFound,
    SessionTooLarge,
    ShuttingDown,
)
from ruvd.core.model import (
    Delta,
    Finished,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Role,
    Started,
    ToolCallDelta,
    Usage,
)
from ruvd.core.ports.engine import EngineReasoning, EngineText
from ruvd.core.ports.events import CompletionEnded, SessionCreationAborted, SessionGone
from ruvd.core.ports.store import Commit, RemovedSession, TurnSnapshot
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.stores.memory import MemoryStore

MEGABYTE = 1 << 20


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    core = Core()
    yield core
    await core.completions.drain(0)


# --- rule 1: get or create -------------------------------------------------------------------


async def test_an_unknown_session_is_created_with_its_first_commit(core: Core) -> None:
    events = await collect(core.start("one", system_prompt="Be brief."))
    assert [type(event.event) for event in events] == [Started, Delta, Finished]
    started = events[0].event
    assert isinstance(started, Started)
    assert started.session_created
    assert started.context_messages == 2
    assert core.prompts() == [["Be brief.", "one"]]
    assert await core.history() == ["one", "answer 1"]
    second = (await collect(core.start("two")))[0].event
    assert isinstance(second, Started)
    assert not second.session_created


async def test_require_existing_refuses_an_unknown_session(core: Core) -> None:
    await failed(core.start(require_existing=True), SessionNotFound)
    assert not core.engine.requests


async def test_a_session_that_is_being_created_shows_as_running_without_messages(
    core: Core,
) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[EngineText("a"), gate, done()]]
    completion = core.start()
    await settle()
    state = await core.sessions.history("s")
    assert (state.running_completion_id, state.messages) == (completion.id, ())
    gate.set()
    await collect(completion)
    assert (await core.sessions.get("s")).running_completion_id == ""


async def test_a_session_whose_turn_is_longer_than_its_idle_timeout_is_listed_meanwhile(
    core: Core,
) -> None:
    await core.commands.create(NewSession("s", idle_timeout_seconds=10.0))
    gate = asyncio.Event()
    core.engine.scripts = [[EngineText("a"), gate, done()]]
    completion = core.start()
    await settle()
    core.clock.advance(11)
    (state,), _ = await core.sessions.list(after=0, limit=9, labels={})
    assert state.running_completion_id == completion.id
    assert (await core.sessions.counts()).active == 1
    gate.set()
    await collect(completion)


async def test_another_system_prompt_for_an_existing_session_is_refused(core: Core) -> None:
    await core.say("one", system_prompt="Be brief.")
    await core.say("two", system_prompt="Be brief.")
    await failed(core.start("three", system_prompt="Be long."), InvalidRequest)
    system = (Message(Role.SYSTEM, "Be long."), Message(Role.USER, "x"))
    await failed(core.start(messages=system), InvalidRequest)
    assert await core.history() == ["one", "answer 1", "two", "answer 2"]


async def test_a_leading_system_message_is_the_new_sessions_system_prompt(core: Core) -> None:
    await core.say(messages=(Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "one")))
    assert (await core.sessions.get("s")).session.system_prompt == "Be kind."
    assert await core.history() == ["one", "answer 1"]


# --- rule 2: one turn at a time --------------------------------------------------------------


async def test_queued_callers_go_in_order_and_each_sees_the_turn_before(core: Core) -> None:
    completions = [core.start(f"question {index}") for index in range(10)]
    await asyncio.gather(*(collect(completion) for completion in completions))
    assert core.engine.most_running == 1
    for index, prompt in enumerate(core.prompts()):
        assert prompt[-1] == f"question {index}"
        assert index == 0 or prompt[-2] == f"answer {index}"


async def test_sessions_do_not_wait_for_each_other_but_for_the_engines_slots() -> None:
    core = Core(ScriptedEngine(slots=2))
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()] for _ in range(5)]
    completions = [core.start("q", f"s{index}") for index in range(5)]
    await settle()
    assert core.engine.running == 2
    gate.set()
    await asyncio.gather(*(collect(completion) for completion in completions))
    assert core.engine.most_running == 2


class StartingEngine(ScriptedEngine):
    """An engine that comes up, and goes down, when told to."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots=slots)
        self.up = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return self.up.is_set()

    async def ready(self) -> None:
        await self.up.wait()


async def test_a_completion_that_waits_for_the_engine_holds_no_slot() -> None:
    engine = StartingEngine(slots=1)
    core = Core(engine=engine)
    first, second = core.start("a", "a"), core.start("b", "b")
    await settle()
    assert core.completions.scheduler.waiting == (2, 0)
    async with asyncio.timeout(1), core.completions.scheduler.take():
        pass
    engine.up.set()
    await asyncio.gather(collect(first), collect(second))
    assert core.prompts() == [["a"], ["b"]]


async def test_a_completion_whose_engine_went_down_while_it_waited_for_a_slot_gives_it_back() -> (
    None
):
    engine = StartingEngine(slots=1)
    core = Core(engine=engine)
    engine.up.set()
    async with core.completions.scheduler.take():
        waiting = core.start("a", "a")
        await settle()
        engine.up.clear()
    await settle()
    async with asyncio.timeout(1), core.completions.scheduler.take():
        pass
    engine.up.set()
    await collect(waiting)
    assert core.prompts() == [["a"]]


async def test_reject_fails_at_once_when_the_session_is_busy(core: Core) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    running = core.start("one")
    await settle()
    await failed(core.start("two", if_busy=IfBusy.REJECT), SessionBusy)
    gate.set()
    await collect(running)
    assert await core.history() == ["one", "a"]


async def test_interrupt_cancels_only_the_running_turn_and_goes_next(core: Core) -> None:
    core.engine.scripts = [[EngineText("part"), asyncio.Event()]]
    running, waiting = core.start("one"), core.start("two")
    await settle()
    interrupter = core.start("three", if_busy=IfBusy.INTERRUPT)
    events = await failed(running, CompletionInterrupted)
    assert [type(event.event) for event in events] == [Started, Delta]
    await asyncio.gather(collect(waiting), collect(interrupter))
    assert await core.history() == ["three", "answer 2", "two", "answer 3"]


async def test_ending_a_session_fails_who_runs_and_who_waits_and_nobody_makes_it_anew(
    core: Core,
) -> None:
    await core.say("zero")
    core.engine.scripts = [[asyncio.Event()]]
    completions = [core.start("one"), core.start("two"), core.start("three")]
    await settle()
    await core.commands.end("s")
    for completion in completions:
        await failed(completion, SessionEnded)
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")
    assert core.engine.running == 0


async def test_a_session_that_is_being_created_can_be_ended(core: Core) -> None:
    core.engine.scripts = [[asyncio.Event()]]
    completion = core.start()
    await settle()
    await core.commands.end("s")
    await failed(completion, SessionEnded)
    with pytest.raises(SessionNotFound):
        await core.commands.end("s")
    await core.commands.end("s", allow_missing=True)


async def test_who_calls_after_the_end_gets_a_new_session(core: Core) -> None:
    await core.say("old")
    core.engine.scripts = [[asyncio.Event()]]
    running = core.start("lost")
    await settle()
    end = asyncio.create_task(core.commands.end("s"))
    await asyncio.sleep(0)
    newcomer = core.start("new")
    await asyncio.gather(end, failed(running, SessionEnded), collect(newcomer))
    assert await core.history() == ["new", "answer 3"]


async def test_a_waiter_who_leaves_is_passed_over(core: Core) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    first, second, third = (core.start(text) for text in ("one", "two", "three"))
    await settle()
    second.cancel(CompletionCancelled("left"))
    gate.set()
    await asyncio.gather(collect(first), failed(second, CompletionCancelled), collect(third))
    assert await core.history() == ["one", "a", "three", "answer 2"]


# --- rule 3: commit ---------------------------------------------------------------------------


async def test_a_turn_is_committed_before_finished_is_sent(core: Core) -> None:
    async with aclosing(core.start("one").events()) as events:
        async for event in events:
            if isinstance(event.event, Finished):
                assert await core.history() == ["one", "answer 1"]


@pytest.mark.parametrize("after", ["nothing", "text"])
async def test_a_failed_completion_leaves_the_session_as_it_was(core: Core, after: str) -> None:
    await core.say("one")
    before = (await core.sessions.get("s")).session
    text = [EngineText("half")] if after == "text" else []
    core.engine.scripts = [[*text, EngineUnavailable("gone")]]
    events = await failed(core.start("two"), EngineUnavailable)
    assert not any(isinstance(event.event, Finished) for event in events)
    assert (await core.sessions.get("s")).session == before
    await core.say("three")
    assert core.prompts()[-1] == ["one", "answer 1", "three"]


async def test_a_first_turn_that_fails_leaves_no_session(core: Core) -> None:
    core.engine.scripts = [[EngineUnavailable("gone")]]
    await failed(core.start(), EngineUnavailable)
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")
    assert core.events.count(SessionCreationAborted("s")) == 1
    await core.say()
    core.engine.scripts = [[EngineUnavailable("gone")]]
    await failed(core.start(), EngineUnavailable)
    assert core.events.count(SessionCreationAborted("s")) == 1


async def test_what_is_kept_of_a_failure_holds_no_frames(core: Core) -> None:
    """They have requests and connections at hand, thousands of times what the events are."""
    failure = EngineUnavailable("gone")
    failure.__cause__ = cause = OSError("reset")
    try:
        int("no number")
    except ValueError as error:
        cause.__context__ = before = error
    core.engine.scripts = [[failure]]
    completion = core.start()
    await completion.ended()
    assert completion.error is failure
    assert (failure.__traceback__, before.__traceback__) == (None, None)


async def test_a_bug_in_a_completion_that_nobody_reads_is_told_to_the_log(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    core.engine.scripts = [[KeyError("a bug")]]
    completion = core.start(on_disconnect=OnDisconnect.CONTINUE)
    await completion.ended()
    (record,) = caplog.records
    assert completion.id in record.getMessage()
    assert record.exc_info
    assert isinstance(record.exc_info[1], KeyError)


async def test_an_answer_that_just_stops_is_a_failure(core: Core) -> None:
    core.engine.scripts = [[EngineText("half")]]
    await failed(core.start(), EngineUnavailable)


async def test_a_cancel_during_the_commit_comes_too_late(core: Core) -> None:
    completion = core.start("one")
    async with aclosing(completion.events()) as events:
        async for event in events:
            if isinstance(event.event, Finished):
                completion.cancel(CompletionCancelled("late"))
    assert await core.history() == ["one", "answer 1"]


# --- rule 6: the client is gone ---------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prefill", "text"])
async def test_the_engine_stops_when_the_last_reader_leaves(core: Core, phase: str) -> None:
    text = [EngineText("part")] if phase == "text" else []
    core.engine.scripts = [[*text, asyncio.Event()]]
    completion = core.start()
    first, second = completion.events(), completion.events()
    await anext(first)
    await anext(second)
    await first.aclose()
    await settle()
    assert core.engine.running == 1
    await second.aclose()
    await settle()
    assert (core.engine.running, core.engine.stopped) == (0, 1)
    assert core.completions.running == 0


async def test_a_queued_caller_who_leaves_never_reaches_the_engine(core: Core) -> None:
    core.engine.scripts = [[asyncio.Event()]]
    core.start("one")
    waiter = core.start("two").events()
    waiting = asyncio.ensure_future(anext(waiter))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    await waiter.aclose()
    await settle()
    assert core.completions.running == 1
    assert len(core.engine.requests) == 1


# --- rules 7 and 9, and limits -----------------------------------------------------------------


async def test_a_session_expires_exactly_at_its_idle_timeout_and_is_made_anew_for_who_asks(
    core: Core,
) -> None:
    await core.commands.create(NewSession("s", "Be brief.", idle_timeout_seconds=10))
    core.clock.advance(9.999)
    await core.say("one")
    core.clock.advance(9.999)
    assert await core.history() == ["one", "answer 1"]
    core.clock.advance(0.001)
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")
    await failed(core.start("two"), SessionExpired)
    started = (await collect(core.start("two", recreate_if_gone=True)))[0].event
    assert isinstance(started, Started)
    assert started.session_created
    assert await core.history() == ["two", "answer 2"]


async def test_a_session_in_use_does_not_expire(core: Core) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[EngineText("a"), gate, done()]]
    await core.commands.create(NewSession("s"))
    completion = core.start("one")
    await settle()
    core.clock.advance(1_000_000)
    assert await core.commands.sweep() == 0
    await core.sessions.get("s")
    gate.set()
    await collect(completion)
    assert await core.history() == ["one", "a"]


async def test_the_least_recently_used_session_goes_and_one_in_use_never() -> None:
    core = Core(policy=SessionPolicy(max_sessions=3))
    for name in ("a", "b", "c"):
        await core.say("q", name)
        core.clock.advance(1)
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("x"), done()]]
    running = core.start("q", "a")
    await settle()
    core.clock.advance(1)
    await core.say("q", "d")
    assert SessionGone("b", "capacity") in core.events
    gate.set()
    await collect(running)
    page, _ = await core.sessions.list(after=0, limit=10, labels={})
    assert [state.session.id for state in page] == ["a", "c", "d"]


class SlowStore(MemoryStore):
    """A disk that takes a commit's time: the first commit after `slow` waits for the next turn."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.committing = asyncio.Event()
        self.begun = asyncio.Event()

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        if self.slow:
            self.slow = False
            self.committing.set()
            await self.begun.wait()
        return await super().commit(commit)

    async def begin_turn(self, session_id: str, request_id: str, now: float) -> TurnSnapshot:
        self.begun.set()  # it waits for the writes before it
        await settle()
        return await super().begin_turn(session_id, request_id, now)


async def test_a_turn_in_a_session_that_is_just_being_evicted_is_told_so() -> None:
    """The eviction is on its way to the store when the turn takes its lane."""
    store = SlowStore()
    core = Core(policy=SessionPolicy(max_sessions=2), store=store)
    await core.say("old", "a")
    core.clock.advance(1)
    await core.say("old", "c")
    store.slow = True
    newcomer = asyncio.create_task(core.say("new", "b"))
    await store.committing.wait()
    store.begun.clear()
    await failed(core.start("again", "a"), SessionEvicted)
    await newcomer
    assert SessionGone("a", "capacity") in core.events
    finished = await core.say("again", "a", recreate_if_gone=True)
    assert finished.exchange_count == 1


async def test_when_every_place_is_in_use_a_newcomer_is_refused() -> None:
    core = Core(policy=SessionPolicy(max_sessions=2))
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("x"), done()] for _ in range(2)]
    running = [core.start("q", name) for name in ("a", "b")]
    await settle()
    await failed(core.start("q", "c"), SessionLimit)
    with pytest.raises(SessionLimit):
        await core.commands.create(NewSession("d"))
    gate.set()
    for completion in running:
        await collect(completion)
    await core.say("q", "c")


async def test_a_history_that_is_full_refuses_the_next_turn_and_keeps_what_it_has() -> None:
    core = Core(policy=SessionPolicy(max_session_bytes=20))
    await core.say("12345")
    await failed(core.start("12345678"), SessionTooLarge)
    assert await core.history() == ["12345", "answer 1"]


async def test_draining_refuses_new_turns_and_lets_running_and_queued_ones_end(
    core: Core,
) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    turns = [core.start("one"), core.start("two")]
    await settle()
    drain = asyncio.create_task(core.completions.drain(60))
    await settle()
    with pytest.raises(ShuttingDown):
        core.start("three")
    gate.set()
    await drain
    for turn in turns:
        await collect(turn)
    assert await core.history() == ["one", "a", "two", "answer 2"]


async def test_what_still_runs_after_the_drain_is_cancelled(core: Core) -> None:
    core.engine.scripts = [[EngineText("a"), asyncio.Event()]]
    turn = core.start("one")
    await settle()
    await core.completions.drain(0.01)
    await failed(turn, ShuttingDown)


# --- the window, and figures -------------------------------------------------------------------


async def test_the_window_is_kept_with_the_session(core: Core) -> None:
    for index in range(12):
        await core.say(f"question {index}")
    sizes = [len(prompt) // 2 for prompt in core.prompts()]
    assert sizes == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3]
    assert (await core.sessions.get("s")).session.window_start == 8
    assert len(await core.history()) == 24


async def test_an_overflow_is_trimmed_once_and_tried_again(core: Core) -> None:
    for index in range(6):
        await core.say(f"question {index}")
    core.engine.scripts = [[ContextTooLong("too long")]]
    await core.say("next")
    assert len(core.prompts()[-2]) == 13
    assert len(core.prompts()[-1]) == 7
    assert (await core.sessions.get("s")).session.window_start == 3
    ended = core.events[-1]
    assert isinstance(ended, CompletionEnded)
    assert ended.context_trimmed


async def test_a_second_overflow_is_the_callers(core: Core) -> None:
    for index in range(3):
        await core.say(f"question {index}")
    core.engine.scripts = [[ContextTooLong("too long")], [ContextTooLong("too long")]]
    await failed(core.start("next"), ContextTooLong)


async def test_tokens_past_the_engines_window_trim_the_next_turn(core: Core) -> None:
    core.engine.window_tokens = 100
    for index in range(5):
        await core.say(f"question {index}")
    core.engine.scripts = [[EngineText("long"), done(prompt=90, completion=11)]]
    await core.say("six")
    started = (await collect(core.start("seven")))[0].event
    assert isinstance(started, Started)
    assert started.context_trimmed


async def test_an_answer_that_is_too_long_ends_there_and_is_committed() -> None:
    core = Core(completion_policy=CompletionPolicy(max_answer_bytes=1000))
    core.engine.scripts.append([EngineText("a"), *[EngineText("é" * 99)] * 1000])
    finished = await core.say("one")
    assert finished.finish_reason is FinishReason.LENGTH
    assert finished.message.content == "a" + "é" * 499  # a character is not cut in two
    assert core.engine.stopped == 1
    assert await core.history() == ["one", finished.message.content]


async def test_one_huge_piece_of_an_answer_is_cut_at_the_limit_in_the_events_as_well() -> None:
    core = Core(completion_policy=CompletionPolicy(max_answer_bytes=1000))
    core.engine.scripts.append([EngineReasoning("r" * 10), EngineText("a" * 5000), done()])
    *_, delta, last = await collect(core.start("one"))
    assert delta.event == Delta("a" * 990)
    assert isinstance(last.event, Finished)
    assert last.event.message.content == "a" * 990


async def test_tool_calls_that_are_too_long_fail_because_half_a_call_is_useless() -> None:
    core = Core(completion_policy=CompletionPolicy(max_answer_bytes=1000))
    endless = [ToolCallDelta(0, "c", "f"), *[ToolCallDelta(0)] * 1000]  # without arguments, too
    core.engine.scripts.append(endless)
    await failed(core.start("one"), EngineRejected)
    assert core.engine.stopped == 1
    core.engine.scripts.append([ToolCallDelta(0, "c", "f"), EngineText("t" * 2000), done()])
    await failed(core.start("one"), EngineRejected)


class LimitedMemory:
    """Memory for so many bytes."""

    def __init__(self, size: int) -> None:
        self.left = size

    def try_reserve(self, size_bytes: int) -> bool:
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self.left += size_bytes


@pytest.mark.parametrize("size", [1000, MEGABYTE - 1, 3 * MEGABYTE - 5])
async def test_a_large_answer_reserves_memory_and_gives_it_back(size: int) -> None:
    memory = LimitedMemory(4 * MEGABYTE)
    core = Core(memory=memory)
    left = []
    core.observers.append(lambda _: left.append(memory.left))
    for number in range(2):
        core.engine.scripts.append([*[EngineText("x" * size)] * 2, done()])
        finished = await core.say("hi", f"s{number}")
        assert finished.message.content == 2 * "x" * size
        assert finished.finish_reason is FinishReason.STOP
        # The first two MiB of an answer are free.
        assert min(left) <= 6 * MEGABYTE - 2 * size
        assert memory.left == 4 * MEGABYTE


async def test_an_answer_without_memory_ends_where_it_is_and_says_why() -> None:
    memory = LimitedMemory(MEGABYTE)
    core = Core(memory=memory)
    core.engine.scripts.append([EngineText("x" * 1000)] * 5000)
    finished = await core.say("one")
    assert finished.finish_reason is FinishReason.LENGTH
    assert finished.raw_finish_reason == "max_memory_bytes"
    assert finished.message.content == "x" * (3 * MEGABYTE)
    assert await core.history() == ["one", finished.message.content]
    core.engine.scripts.append([ToolCallDelta(0, "c", "f", "x" * (4 * MEGABYTE)), done()])
    await failed(core.start("two"), Overloaded)
    assert memory.left == MEGABYTE


async def test_an_answer_that_fails_or_is_cancelled_gives_its_memory_back() -> None:
    memory = LimitedMemory(8 * MEGABYTE)
    core = Core(memory=memory)
    forever = asyncio.Event()
    core.engine.scripts = [
        [EngineText("x" * (4 * MEGABYTE)), EngineUnavailable("gone")],
        [EngineText("x" * (4 * MEGABYTE)), forever],
    ]
    await failed(core.start("one"), EngineUnavailable)
    assert memory.left == 8 * MEGABYTE
    completion = core.start("two")
    while memory.left == 8 * MEGABYTE:  # noqa: ASYNC110
        await asyncio.sleep(0)
    completion.cancel(CompletionCancelled("enough"))
    await completion.ended()
    await asyncio.sleep(0)
    assert memory.left == 8 * MEGABYTE


async def test_a_long_history_needs_memory_until_the_answer_begins() -> None:
    memory = LimitedMemory(4 * MEGABYTE)
    core = Core(memory=memory)
    core.engine.scripts.append([EngineText("x" * (2 * MEGABYTE)), done()])
    await core.say("one")
    begun, gate = asyncio.Event(), asyncio.Event()
    core.engine.scripts.append([begun, EngineText("a"), gate, done()])
    completion = core.start("two")
    await settle()
    assert memory.left < 2 * MEGABYTE
    begun.set()
    await settle()
    assert memory.left == 4 * MEGABYTE
    gate.set()
    await collect(completion)
    memory.left = MEGABYTE
    await failed(core.start("three"), Overloaded)
    assert memory.left == MEGABYTE
    assert len(await core.history()) == 4


async def test_an_answer_of_many_short_pieces_is_whole() -> None:
    core = Core()
    words = [f"{number} " for number in range(5000)]
    core.engine.scripts.append([*map(EngineText, words), *map(EngineReasoning, words), done()])
    message = (await core.say("one")).message
    assert message.content == message.reasoning == "".join(words)


async def test_usage_adds_up_and_unknown_cached_tokens_stay_unknown(core: Core) -> None:
    core.engine.scripts = [
        [EngineText("a"), done(10, None, 2)],
        [EngineText("b"), done(20, 15, 3)],
    ]
    assert (await core.say("one")).usage == Usage(10, None, 2)
    assert (await core.sessions.get("s")).session.usage.cached_tokens is None
    await core.say("two")
    usage = (await core.sessions.get("s")).session.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (30, 15, 5)


async def test_a_stateless_completion_keeps_nothing(core: Core) -> None:
    finished = await core.say("one", "", system_prompt="Be brief.")
    assert core.prompts() == [["Be brief.", "one"]]
    assert finished.exchange_count == 0
    assert await core.sessions.list(after=0, limit=10, labels={}) == ([], 0)


# --- forks ---------------------------------------------------------------------------------------


async def test_a_session_in_use_can_be_forked_though_its_time_out_has_passed(core: Core) -> None:
    await core.say("one")
    core.engine.scripts = [[asyncio.Event()]]
    core.start("two")
    await settle()
    core.clock.advance(1_000_000)
    await core.commands.fork(NewFork("s", session_id="f"))
    assert await core.history("f") == ["one", "answer 1"]


@pytest.mark.parametrize(
    ("turns", "parent_start", "count", "start"),
    [(12, 8, 8, 0), (12, 8, 9, 8), (30, 24, 18, 8), (30, 24, 19, 16), (30, 24, 24, 16)],
)
async def test_a_forks_window_is_its_parents_or_where_the_parents_was_then(
    core: Core, turns: int, parent_start: int, count: int, start: int
) -> None:
    """It is never left without a history."""
    for index in range(turns):
        await core.say(f"question {index}")
    assert (await core.sessions.get("s")).session.window_start == parent_start
    await core.commands.fork(NewFork("s", count, "f"))
    await core.say("next", "f")
    assert len(core.prompts()[-1]) == 2 * (count - start) + 1
