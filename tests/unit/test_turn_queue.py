"""A lane of the queue while something else is on its way: look-ups, writes, take-overs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from core import Core, collect, failed, settle
from fakes import done

from ruvd.core.completions.completion import CompletionRef
from ruvd.core.errors import (
    CompletionNotFound,
    EngineTimeout,
    InvalidRequest,
    Overloaded,
    SessionEnded,
    SessionNotFound,
    StoreUnavailable,
)
from ruvd.core.model import ContextWindow, IfBusy, Message, Role
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import CompletionEnded, SessionGone
from ruvd.core.ports.store import Commit, Gone, RemovedSession
from ruvd.core.sessions.commands import SessionChanges
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.sessions.turn_queue import TurnQueue, TurnRequest
from ruvd.stores.memory import MemoryStore


class GatedStore(MemoryStore):
    """A disk that takes its time: commits and look-ups of receipts wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        await self.gate.wait()
        return await super().commit(commit)

    async def idempotency_record(self, session_id: str, request_id: str):  # type: ignore[no-untyped-def]
        await self.gate.wait()
        return await super().idempotency_record(session_id, request_id)


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    core = Core(store=GatedStore())
    yield core
    await core.completions.drain(0)


def gate(core: Core) -> asyncio.Event:
    assert isinstance(core.store, GatedStore)
    return core.store.gate


async def test_an_append_whose_caller_leaves_in_mid_write_is_seen_by_the_next_turn(
    core: Core,
) -> None:
    await core.say("zero")
    gate(core).clear()
    message = Message(Role.USER, "appended")
    append = asyncio.create_task(core.commands.append("s", [message]))
    await settle()
    turn = core.start("one")
    append.cancel()
    await settle()
    gate(core).set()
    await collect(turn)
    assert append.cancelled()
    assert core.prompts()[-1] == ["zero", "answer 1", "appended", "one"]
    state = await core.sessions.history("s")
    session = await core.store.get("s")
    assert session
    assert session.message_count == len(state.messages or ()) == 5


async def test_a_caller_with_a_request_id_keeps_its_place_while_the_id_is_looked_up(
    core: Core,
) -> None:
    gate(core).clear()
    first = core.start("one", request_id="r")
    second = core.start("two")
    await settle()
    gate(core).set()
    await asyncio.gather(collect(first), collect(second))
    assert (await core.history())[::2] == ["one", "two"]


async def test_a_caller_whose_request_id_is_being_looked_up_is_ended_with_the_session(
    core: Core,
) -> None:
    await core.say("zero")
    core.engine.scripts = [[asyncio.Event()]]
    running = core.start("one")
    await settle()
    gate(core).clear()
    waiting = core.start("two", request_id="r")
    await settle()
    end = asyncio.create_task(core.commands.end("s"))
    await settle()
    gate(core).set()
    await end
    await failed(running, SessionEnded)
    await failed(waiting, SessionEnded)
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")


async def test_a_take_over_that_cannot_go_on_costs_nobody_a_turn(core: Core) -> None:
    await core.say("zero", system_prompt="Be brief.")
    go_on = asyncio.Event()
    core.engine.scripts = [[EngineText("a"), go_on, done()]]
    running = core.start("one")
    await settle()
    wrong = core.start("two", if_busy=IfBusy.INTERRUPT, system_prompt="Be long.")
    await failed(wrong, InvalidRequest)
    go_on.set()
    await collect(running)


async def test_a_take_over_does_not_count_as_waiting_and_an_append_does() -> None:
    core = Core(policy=SessionPolicy(max_queue=0))
    core.engine.scripts = [[asyncio.Event()]]
    core.start("one")
    await settle()
    with pytest.raises(Overloaded):
        await core.commands.append("s", [Message(Role.USER, "more")])
    await collect(core.start("two", if_busy=IfBusy.INTERRUPT))
    assert await core.history() == ["two", "answer 2"]


async def test_a_system_message_that_is_the_sessions_own_is_not_stored_again(core: Core) -> None:
    system = Message(Role.SYSTEM, "Be brief.")
    for text in ("one", "two"):
        await core.say(messages=(system, Message(Role.USER, text)))
    assert await core.history() == ["one", "answer 1", "two", "answer 2"]
    assert core.prompts()[-1] == ["Be brief.", "one", "answer 1", "two"]


async def test_a_window_that_is_widened_takes_in_what_was_trimmed(core: Core) -> None:
    for index in range(13):
        await core.say(f"question {index}")
    await core.commands.update("s", SessionChanges(context_window=ContextWindow(3, 12)))
    await core.say("next")
    assert len(core.prompts()[-1]) == 2 * 12 + 1
    await core.commands.update("s", SessionChanges(context_window=ContextWindow(3, 0)))
    await core.say("all")
    assert len(core.prompts()[-1]) == 2 * 14 + 1


async def test_a_completion_is_reported_under_the_model_that_answered(core: Core) -> None:
    await core.commands.create(NewSession("s", model="of-the-session"))
    await core.say("one")
    ended = [event for event in core.events if isinstance(event, CompletionEnded)]
    assert ended[-1].model == "of-the-session"


async def test_a_resume_past_the_end_is_refused_also_when_the_events_are_gone(core: Core) -> None:
    completion = core.start("one")
    last = (await collect(completion))[-1].sequence
    ref = CompletionRef(completion.id)
    for _ in range(2):
        assert [event async for event in core.completions.resume(ref, last)] == []
        with pytest.raises(InvalidRequest):
            await anext(core.completions.resume(ref, last + 1))
        core.clock.advance(core.completion_policy.retention_seconds + 1)
        await core.say(session_id="another")  # which forgets the events of the first
    with pytest.raises(CompletionNotFound):
        await anext(core.completions.resume(CompletionRef("unknown"), 0))


async def test_a_waiter_who_is_cancelled_as_the_turn_is_given_up_leaves_without_an_error() -> None:
    turn_queue = TurnQueue(max_in_use=10, max_waiting=10)
    has_turn, give_up = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with turn_queue.turn("s", TurnRequest()):
            has_turn.set()
            await give_up.wait()

    async def wait() -> None:
        async with turn_queue.turn("s", TurnRequest()):
            raise AssertionError("it was cancelled before it had the turn")

    running = asyncio.create_task(run())
    await has_turn.wait()
    waiting = asyncio.create_task(wait())
    await settle()
    give_up.set()
    waiting.cancel()  # in the same pass of the event loop
    await running
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not turn_queue.in_use()


class SlowEndStore(MemoryStore):
    """A disk that takes its time to delete a session."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        await self.gate.wait()
        return await super().end(session_id, gone=gone, now=now)


async def test_a_session_whose_end_is_cancelled_halfway_is_told_as_gone_if_it_is_gone() -> None:
    store = SlowEndStore()
    core = Core(store=store)
    await core.say()
    end = asyncio.create_task(core.commands.end("s"))
    await settle()
    end.cancel()
    await settle()
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await end
    assert await core.sessions.current("s") is None
    assert core.events[-1] == SessionGone("s", "client")


class StoreThatBreaks(MemoryStore):
    """A store whose `touch` fails: the disk went away during the turn."""

    async def touch(self, session_id: str, now: float) -> bool:
        raise StoreUnavailable("the disk is gone")


async def test_the_error_of_a_turn_is_told_also_when_the_store_has_gone_meanwhile() -> None:
    core = Core(store=StoreThatBreaks())
    await core.say("one")
    core.engine.scripts.append([EngineTimeout("too slow")])
    await failed(core.start("two"), EngineTimeout)
    assert (await core.say("three")).exchange_count == 2
