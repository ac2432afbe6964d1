"""Many callers on one session, checked by their prompts: order, interruption, request ids."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from core import Core, collect, settle
from fakes import done

from ruvd.core.completions.completion import Completion, CompletionPolicy, CompletionRef
from ruvd.core.errors import (
    CompletionCancelled,
    CompletionInterrupted,
    RequestIdReused,
    RuvdError,
    SessionNotFound,
)
from ruvd.core.model import ContextWindow, Finished, IfBusy, Message, Role
from ruvd.core.ports.engine import EngineText
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.turn_queue import TurnRequest


def whole_history(**policy: Any) -> Core:
    """Returns a core whose prompts have the whole history."""
    window = ContextWindow(max_exchanges=0)
    return Core(
        policy=SessionPolicy(context_window=window), completion_policy=CompletionPolicy(**policy)
    )


async def outcome(completion: Completion) -> type[RuvdError] | None:
    """Returns the error of a completion, or None if it finished."""
    try:
        await collect(completion)
    except RuvdError as error:
        return type(error)
    return None


async def test_fifty_callers_go_in_order_of_arrival_and_each_prompt_has_the_answer_before() -> None:
    core = whole_history()
    completions = [core.start(f"question {index}") for index in range(50)]
    await asyncio.gather(*map(collect, completions))
    assert core.engine.most_running == 1
    history: list[str] = []
    for index, request in enumerate(core.engine.requests):
        history.append(f"question {index}")
        assert [message.content for message in request.messages] == history
        history.append(f"answer {index + 1}")
    assert await core.history() == history


async def test_interrupters_cancel_only_the_running_turn_and_go_before_waiting_callers() -> None:
    core = whole_history()
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


async def test_an_interrupter_after_the_end_of_a_session_does_not_overtake_the_end() -> None:
    core = whole_history()
    await collect(core.start("zero"))
    async with core.sessions.turn_queue.turn("s", TurnRequest()):
        end = asyncio.create_task(core.commands.end("s"))
        await settle()
        late = core.start("one", if_busy=IfBusy.INTERRUPT)
        await settle()
    await end
    assert await outcome(late) is None
    assert await core.history() == ["one", "answer 2"]


@pytest.mark.parametrize("how", ["failed", "committed"])
async def test_expiry_of_an_old_completion_leaves_a_running_one_its_request_id(how: str) -> None:
    core = whole_history(retention_seconds=10)
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
    core = whole_history()
    core.engine.scripts = [[EngineText("part"), asyncio.Event()]]
    first = core.start("one", request_id="r")
    await settle()
    first.cancel(CompletionCancelled("left"), keep_partial=keep_partial)
    again = core.start("one", request_id="r")
    assert await outcome(again) is None
    assert await core.history() == ["one", "part" if keep_partial else "answer 2"]
    assert core.completions.running == 0


async def test_an_append_before_a_queued_completion_uses_up_the_request_id() -> None:
    core = whole_history()
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    running = core.start("one")
    await settle()
    append = asyncio.create_task(core.commands.append("s", [Message(Role.USER, "more")], "r"))
    await asyncio.sleep(0)
    late = core.start("two", request_id="r")
    await settle()
    gate.set()
    ended = await asyncio.gather(outcome(running), append, outcome(late))
    assert (ended[0], ended[2]) == (None, RequestIdReused)
    assert await core.history() == ["one", "a", "more"]


async def test_a_resume_while_the_request_is_repeated_gets_the_missing_events() -> None:
    core = whole_history()
    events = await collect(core.start("one", request_id="r"))
    repeated = core.start("one", request_id="r")
    ref = CompletionRef(session_id="s", request_id="r")
    async with aclosing(core.completions.resume(ref, 2)) as missing:
        assert [event async for event in missing] == events[2:]
    assert await collect(repeated) == events


async def test_a_cancelled_turn_does_not_create_its_session() -> None:
    core = whole_history()
    core.engine.scripts = [[EngineText("part"), asyncio.Event()]]
    running = core.start("one")
    await settle()
    running.cancel(CompletionCancelled("left"))
    assert await outcome(running) is CompletionCancelled
    with pytest.raises(SessionNotFound):
        await core.sessions.get("s")


async def test_a_cancel_that_comes_as_a_stateless_completion_ends_is_too_late() -> None:
    """A reader wakes between the end of the completion's task and the task's callbacks. If the
    cancel counted, the request id would look free, and a repeat would generate a second time."""
    core = Core()
    first = core.start("one", "", request_id="r")
    async with aclosing(first.events()) as events:
        async for event in events:
            if isinstance(event.event, Finished):
                first.cancel(CompletionCancelled("the caller has gone"))
                repeated = core.start("one", "", request_id="r")
    assert repeated is first
    await collect(repeated)
    assert len(core.engine.requests) == 1
