"""The view of what runs: its phases and figures, and that looking on changes nothing."""

from __future__ import annotations

import asyncio

import pytest
from core import Core, collect, settle
from fakes import ScriptedEngine, done

from ruvd.core.completions.activity import Activity, Phase
from ruvd.core.completions.growing_text import GrowingText
from ruvd.core.model import FinishReason, ToolCallDelta
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText


def activity_of(core: Core) -> Activity:
    return Activity(core.sessions, core.completions, core.clock)


async def test_a_completion_is_shown_in_each_of_its_phases_with_its_figures() -> None:
    core = Core()
    prompt, rest = asyncio.Event(), asyncio.Event()
    core.engine.scripts.append(
        [
            prompt,
            EngineReasoning("hm"),
            EngineText("a "),
            EngineText("b "),
            ToolCallDelta(0, "i", "f", "{}"),
            rest,
            done(),
        ]
    )
    activity = activity_of(core)
    completion = core.start("hello")
    (shown,) = activity.running(10)
    assert (shown.phase, shown.queue_seconds, shown.sent_messages) == (Phase.WAITING, None, 0)
    core.clock.advance(1.0)
    await settle()
    (shown,) = activity.running(10)
    assert (shown.phase, shown.queue_seconds, shown.sent_messages) == (Phase.PROMPT, 1.0, 1)
    assert (shown.pieces, shown.pieces_per_second, shown.first_output_seconds) == (0, None, None)
    core.clock.advance(1.0)
    prompt.set()
    await settle()
    core.clock.advance(2.0)
    (shown,) = activity.running(10)
    assert (shown.phase, shown.seconds, shown.first_output_seconds) == (Phase.ANSWER, 4.0, 2.0)
    assert (shown.pieces, shown.pieces_per_second) == (4, 1.5)
    assert (shown.completion_id, shown.session_id, shown.model) == (completion.id, "s", "scripted")
    assert activity.tail(completion.id, 3).text == " b "
    assert activity.tail(completion.id, 100).reasoning == "hm"
    rest.set()
    await collect(completion)
    assert activity.running(10) == []
    assert activity.tail(completion.id, 100).text == ""


async def test_looking_on_neither_seals_events_nor_counts_as_a_reader() -> None:
    core = Core()
    gate, end = asyncio.Event(), asyncio.Event()
    core.engine.scripts.append([EngineText("a"), gate, EngineText("b"), end, done()])
    completion, activity = core.start(), activity_of(core)
    await settle()
    activity.running(10)
    assert activity.tail(completion.id, 10).text == "a"
    gate.set()
    await settle()
    (shown,) = activity.running(10)
    assert (shown.readers, activity.tail(completion.id, 10).text) == (0, "ab")
    end.set()
    texts = [getattr(each.event, "text", None) for each in await collect(completion)]
    assert texts == [None, "ab", None]


async def test_completions_are_those_of_a_tenant_and_a_session_and_not_too_many() -> None:
    core = Core()
    gate = asyncio.Event()
    core.engine.scripts += [[gate, done()] for _ in range(4)]
    for session_id, tenant in (("s", "default"), ("t", "default"), ("a/s", "a"), ("", "a")):
        core.start(session_id=session_id, tenant=tenant)
    await settle()
    activity = activity_of(core)

    def found(*arguments: object) -> list[str]:
        return [each.session_id for each in activity.running(*arguments)]  # type: ignore[arg-type]

    assert found(10) == ["s", "t", "a/s", ""]
    assert (activity.total, found(2)) == (4, ["s", "t"])
    assert found(10, "a") == ["a/s", ""]
    assert found(10, "default", "t") == ["t"]
    gate.set()
    await core.completions.wait_idle()


async def test_those_that_wait_are_counted_by_what_they_wait_for() -> None:
    core = Core(ScriptedEngine(slots=1))
    gate = asyncio.Event()
    core.engine.scripts.append([gate, EngineDone(FinishReason.STOP)])
    for session_id in ("s", "s", "t"):
        core.start(session_id=session_id)
    core.start(session_id="", batch=True)
    await settle()
    waiting = activity_of(core).waiting
    assert (waiting.session, waiting.engine, waiting.batch) == (1, 1, 1)
    gate.set()
    await core.completions.wait_idle()


@pytest.mark.parametrize("pieces", [0, 1, 3, 1023, 1024, 1025, 5000])
def test_the_end_of_a_growing_text_is_that_of_the_whole(pieces: int) -> None:
    text = GrowingText()
    for number in range(pieces):
        text.append(f"{number},")
    whole = text.joined()
    assert text.pieces == pieces
    for characters in (0, 1, 5, 100, 4000, 100_000):
        assert text.tail(characters) == (whole[-characters:] if characters else "")
