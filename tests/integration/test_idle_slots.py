"""What is done with slots that rest, on a real llama.cpp: what follows an answer, and saves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from embedded import (
    STORIES,
    Talk,
    all_is_well,
    answer,
    evaluated,
    files,
    moved,
    running,
    tell_all,
    until,
)

from ruvd.core.errors import EngineRejected
from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import Event, PromptEvaluated
from ruvd.engines.llama import idle_work, kv_cache
from ruvd.engines.llama.engine import LlamaEngine
from ruvd.engines.llama.idle_work import Child, IdleWork
from ruvd.engines.llama.prompt_evaluation import Server
from ruvd.engines.llama.slot_transfer import SlotMover
from ruvd.engines.llama.slots import Slot

NEVER = 1000.0


def slots_of(engine: LlamaEngine) -> list[Slot]:
    return engine._prefix_cache.child().table._slots


def ahead(events: list[Event]) -> list[str]:
    return [event.session_key for event in events if isinstance(event, PromptEvaluated)]


async def has_gone_on(engine: LlamaEngine) -> None:
    """Return when what follows the answers is evaluated."""

    async def nothing_is_left() -> bool:
        return not any(slot.answered or slot.busy for slot in slots_of(engine))

    await until(nothing_is_left)


class Steps:
    """The evaluations ahead, each `before` which something happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.slots: list[int] = []
        self.before: Callable[[], None] | None = None
        step = Server.step

        async def slow(server: Server, slot: int, tokens: list[int]) -> tuple[int, float]:
            self.slots.append(slot)
            self.begun.set()
            await self.go_on.wait()
            if self.before is not None:
                self.before()
            return await step(server, slot, tokens)

        monkeypatch.setattr(Server, "step", slow)


class Looks:
    """Counts the looks at what there is to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        look = IdleWork._look

        async def counted(work: IdleWork) -> None:
            await look(work)
            self.count += 1

        monkeypatch.setattr(IdleWork, "_look", counted)

    async def pass_by(self, looks: int) -> None:
        """Return when so many more have been taken."""
        last = self.count + looks

        async def have_passed() -> bool:
            return self.count >= last

        await until(have_passed)


async def test_what_follows_an_answer_is_evaluated_before_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch)
    counts: dict[bool, int] = {}
    for setting in (False, True):
        monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
        events: list[Event] = []
        async with running(events, evaluate_ahead=setting) as engine:
            talk = Talk("ann")
            await talk.turn(engine, "Who are you?", bypass_cache=True)
            monkeypatch.setattr(idle_work, "_LOOK_SECONDS", NEVER)
            await looks.pass_by(1)
            talk.messages = talk.messages[:1]
            await talk.turn(engine, STORIES["ann"] * 4)
            if setting:
                await has_gone_on(engine)
                assert ahead(events) == ["ann"]
            found = await talk.turn(engine, "What came in?")
            counts[setting] = evaluated(found)
            assert setting or not ahead(events)
            again = replace(talk.asks("", bypass_cache=True), messages=talk.messages[:-1])
            plain = await answer(engine, replace(again, session_key=""))
            assert found.text == plain.text
    assert counts[True] <= counts[False] - 3, "the end of an answer, and the head of a message"


async def test_only_sessions_go_on_and_only_after_an_answer() -> None:
    events: list[Event] = []
    async with running(events, slots=3) as engine:
        await Talk("").turn(engine, "Who are you?")
        await Talk("ann").turn(engine, "Who are you?", bypass_cache=True)
        cut = engine.generate(Talk("ben").asks(STORIES["ben"] * 4, max_tokens=200))
        await anext(cut)
        await cut.aclose()
        await Talk("cay").turn(engine, "Who are you?")
        await has_gone_on(engine)
        assert ahead(events) == ["cay"]


async def test_nothing_goes_on_while_somebody_waits_for_a_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    looks = Looks(monkeypatch)
    events: list[Event] = []
    async with running(events) as engine:
        table = engine._prefix_cache.child().table
        async with table.hold(Talk("ben").asks("")) as waiting:
            await Talk("ann").turn(engine, STORIES["ann"] * 4)
            await looks.pass_by(3)
            assert ahead(events) == []
            monkeypatch.setattr(idle_work, "_LOOK_SECONDS", NEVER)
            await looks.pass_by(1)
            table.answers(waiting)
            await has_gone_on_beside(waiting, engine)
        assert ahead(events) == ["ann"]


async def has_gone_on_beside(mine: Slot, engine: LlamaEngine) -> None:
    async def nothing_is_left() -> bool:
        others = [slot for slot in slots_of(engine) if slot is not mine]
        return not any(slot.answered or slot.busy for slot in others)

    await until(nothing_is_left)


async def test_a_turn_that_comes_meanwhile_finds_what_was_evaluated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch)
    async with running() as engine:
        talk = Talk("ann")
        first = await talk.turn(engine, STORIES["ann"] * 4)
        await steps.begun.wait()
        second = asyncio.create_task(talk.turn(engine, "What came in?"))
        await asyncio.sleep(0)
        steps.go_on.set()
        assert (await second).cached_tokens > first.prompt_tokens
        assert [slot.session_key for slot in slots_of(engine)].count("ann") == 1
        await all_is_well(engine)


async def test_of_a_session_that_ends_meanwhile_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps(monkeypatch)
    events: list[Event] = []
    async with running(events, states_path=tmp_path / "kv") as engine:
        steps.before = lambda: engine._prefix_cache.forget("ann")
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        steps.go_on.set()
        await has_gone_on(engine)
        [held] = [slot for slot in slots_of(engine) if slot.holds.size]
        assert held.private
        assert (held.session_key, ahead(events)) == ("", [])
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["lock"]


async def test_an_engine_that_dies_meanwhile_is_only_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch)
    async with running() as engine:
        pid = engine.pid
        assert pid is not None
        steps.before = lambda: os.kill(pid, signal.SIGKILL)
        talk = Talk("ann")
        await talk.turn(engine, STORIES["ann"] * 4)
        steps.go_on.set()

        async def is_another() -> bool:
            return engine.pid not in (None, pid)

        await until(is_another)
        steps.before = None
        assert (await talk.turn(engine, "What came in?")).text
        await has_gone_on(engine)


async def test_a_stop_meanwhile_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps(monkeypatch)
    talk = Talk("ann")
    async with running(states_path=tmp_path / "kv") as engine:
        await talk.turn(engine, STORIES["ann"] * 4)
        await steps.begun.wait()
    steps.go_on.set()
    async with running(states_path=tmp_path / "kv") as engine:
        assert evaluated(await talk.turn(engine, "What came in?")) < 40


async def test_a_history_that_fills_its_slot_is_left_as_it_is() -> None:
    events: list[Event] = []
    async with running(events, context_tokens=256, answer_tokens=32) as engine:
        talk = Talk("ann")
        talk.messages = [Message(Role.SYSTEM, "Be brief.")]
        fill = {"max_tokens": 230, "extra_body": {"ignore_eos": True}}
        await talk.turn(engine, "Tell a long story.", **fill)
        await has_gone_on(engine)
        assert ahead(events) == []
        await all_is_well(engine)


@pytest.mark.parametrize("how", ["without thoughts", "with another head", "with a long end"])
async def test_an_answer_that_the_template_writes_in_another_way_is_left_as_it_is(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Server._text

    async def written(server: Server, request: EngineRequest) -> str:
        found = await text(server, request)
        answers = [each.content for each in request.messages if each.role is Role.ASSISTANT]
        if how == "with another head":
            return f"{len(request.messages)} {found}"
        for each in answers:
            before, _, after = found.rpartition(each)
            is_long = how == "with a long end"
            found = before + (each + " and so on" * 40 if is_long else each[3:]) + after
        return found

    monkeypatch.setattr(Server, "_text", written)
    events: list[Event] = []
    async with running(events) as engine:
        await Talk("ann").turn(engine, STORIES["ann"] * 8)
        await has_gone_on(engine)
        assert ahead(events) == []


async def test_it_is_written_with_the_options_of_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    text = Server._text

    async def noted(server: Server, request: EngineRequest) -> str:
        asked.append(request.options.extra_body.get("chat_template_kwargs"))
        return await text(server, request)

    monkeypatch.setattr(Server, "_text", noted)
    events: list[Event] = []
    async with running(events) as engine:
        options = {"extra_body": {"chat_template_kwargs": {"effort": "high"}}}
        await Talk("ann").turn(engine, STORIES["ann"], **options)
        await has_gone_on(engine)
        assert ahead(events) == ["ann"]
    assert asked
    assert all(each == {"effort": "high"} for each in asked)


async def test_a_session_that_ends_before_its_turn_to_go_on_comes_stays_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch)
    events: list[Event] = []
    async with running(events) as engine:
        await asyncio.gather(
            Talk("ann").turn(engine, STORIES["ann"] * 4),
            Talk("ben").turn(engine, STORIES["ben"] * 4),
        )
        await steps.begun.wait()
        first = slots_of(engine)[steps.slots[0]]
        [second] = [slot for slot in slots_of(engine) if slot is not first]
        first_key = first.session_key
        engine._prefix_cache.forget(second.session_key)
        steps.go_on.set()
        await has_gone_on(engine)
        assert (second.private, second.session_key) == (True, "")
        assert ahead(events) == [first_key]


async def test_a_turn_that_waits_for_its_slot_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(monkeypatch)
    async with running() as engine:
        table = engine._prefix_cache.child().table
        talks = {name: Talk(name) for name in ("ann", "ben")}
        await asyncio.gather(*(talk.turn(engine, STORIES[n] * 4) for n, talk in talks.items()))
        await steps.begun.wait()
        held = slots_of(engine)[steps.slots[0]]
        steps.before = lambda: waited.append(table.is_waited_for)
        waited: list[bool] = []
        turn = asyncio.create_task(talks[held.session_key].turn(engine, "What came in?"))
        await asyncio.sleep(0)
        assert table.is_waited_for
        steps.go_on.set()
        await turn
        await has_gone_on(engine)
        assert waited[0], "it had begun before"
        assert not any(waited[1:])


async def test_who_comes_before_the_step_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    steps.go_on.set()
    following, reached, go_on = Server.following, asyncio.Event(), asyncio.Event()

    async def slow(
        server: Server, request: EngineRequest, text: str
    ) -> tuple[list[int], int] | None:
        reached.set()
        await go_on.wait()
        return await following(server, request, text)

    monkeypatch.setattr(Server, "following", slow)
    events: list[Event] = []
    async with running(events) as engine:
        table = engine._prefix_cache.child().table
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        await reached.wait()
        async with table.hold(Talk("ben").asks("")) as waiting:
            go_on.set()
            ann = next(slot for slot in slots_of(engine) if slot is not waiting)

            async def is_given_back() -> bool:
                return not ann.busy

            await until(is_given_back)
            assert not steps.slots
        await has_gone_on(engine)
        assert ahead(events) == ["ann"]


async def test_with_more_sessions_than_slots_the_next_to_go_is_saved_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", NEVER)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    events: list[Event] = []
    async with running(events) as engine:
        table = engine._prefix_cache.child().table
        talks = await tell_all(engine)
        took: list[list[tuple[str, str]]] = []
        for name, talk in talks.items():

            async def is_saved() -> bool:
                return table.is_idle and not table.answered and table.next_out(NEVER) is None

            await until(is_saved)
            before, is_out = len(events), all(slot.session_key != name for slot in table._slots)
            assert evaluated(await talk.turn(engine, "What came in?")) < 40, name
            if is_out:
                took.append(moved(events[before:])[:1])
        assert len(took) >= len(talks) - 2
        assert all(each == [("restore", "ok")] for each in took), "no save was waited for"
        assert len(files(engine)) <= len(talks) + 1


class Saves:
    """Counts what is saved, or tried, while slots rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        save = idle_work._save

        async def counted(child: Child, mover: SlotMover, slot: Slot) -> None:
            self.count += 1
            await save(child, mover, slot)

        monkeypatch.setattr(idle_work, "_save", counted)


async def test_a_session_that_sleeps_is_no_reason_to_save_the_others_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", NEVER)
    monkeypatch.setattr(idle_work, "_CROWDED_SECONDS", 0.0)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    looks, saves = Looks(monkeypatch), Saves(monkeypatch)
    async with running() as engine:
        talks = await tell_all(engine)
        for name in ("cay", "dee") * 2:
            await talks[name].turn(engine, "What came in?")
            await looks.pass_by(3)
        assert saves.count == 0


async def test_a_save_that_failed_is_not_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", NEVER)
    monkeypatch.setattr(idle_work, "_REST_SECONDS", NEVER)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    looks, saves = Looks(monkeypatch), Saves(monkeypatch)

    async def full(*_: object) -> None:
        raise EngineRejected("no space left on device")

    monkeypatch.setattr(kv_cache, "_act", full)
    async with running() as engine:
        for talk in (await tell_all(engine)).values():
            await talk.turn(engine, "What came in?")
            await looks.pass_by(2)
        assert saves.count == 1


async def test_with_as_many_sessions_as_slots_nothing_is_saved_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", NEVER)
    monkeypatch.setattr(idle_work, "_REST_SECONDS", NEVER)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    looks = Looks(monkeypatch)
    events: list[Event] = []
    async with running(events) as engine:
        for name in ("ann", "ben") * 2:
            await Talk(name).turn(engine, STORIES[name] * 2)
            await has_gone_on(engine)
        await looks.pass_by(3)
        saves = [each for each in moved(events) if each[0] == "save"]
        assert len(saves) <= 1, "what was lent for the system prompt"


async def test_what_rests_is_saved_without_being_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    async with running(states_path=tmp_path / "kv") as engine:
        await Talk("ann").turn(engine, STORIES["ann"] * 4)

        async def is_sealed() -> bool:
            return bool(list((tmp_path / "kv").glob("*.seal")))

        await until(is_sealed)


async def test_where_every_slot_holds_a_session_the_next_one_waits_for_no_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", 0.0)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    events: list[Event] = []
    async with running(events) as engine:
        for name in ("ann", "ben"):
            await Talk(name).turn(engine, STORIES[name] * 4)
        slots = engine._prefix_cache.child().table

        async def both_are_saved() -> bool:
            return slots.is_idle and not slots.answered and not slots.resting(0.0)

        await until(both_are_saved)
        monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", 1000.0)
        before = len(events)
        await Talk("cay").turn(engine, "What came in?")
        assert ("save", "ok") not in moved(events[before:])


async def test_nothing_is_saved_ahead_while_somebody_waits_for_a_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle_work, "_REST_SECONDS_IF_FULL", 0.0)
    monkeypatch.setattr(idle_work, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(idle_work, "_LOOKS_AGAIN", 10_000)
    events: list[Event] = []
    async with running(events, slots=3) as engine:
        table = engine._prefix_cache.child().table
        other = Talk("cay")
        other.messages = [Message(Role.SYSTEM, "Be brief.")]  # so that nothing is lent to it
        async with table.hold(Talk("ben").asks("")) as waiting:
            waiting.begins("ben")
            await Talk("ann").turn(engine, STORIES["ann"] * 4)
            await other.turn(engine, STORIES["cay"] * 4)  # time to save ann's, who rests
            assert table.is_full
            assert ("save", "ok") not in moved(events)
            waiting.answering = True

            async def is_saved() -> bool:
                return ("save", "ok") in moved(events)

            await until(is_saved)
