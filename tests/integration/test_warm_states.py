"""KV states that move between slots and files, on a real llama.cpp: its own counters tell."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedded import (
    NO_IDLE_WORK,
    STORIES,
    SYSTEM,
    Call,
    Talk,
    all_is_well,
    answer,
    evaluated,
    moved,
    running,
    tell_all,
)

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event
from ruvd.engines.llama.prompt_evaluation import STEP_TOKENS


async def test_with_more_sessions_than_slots_each_goes_on_where_it_was() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        talks = await tell_all(engine)
        for question in ("What came in?", "And what of the money?"):
            for talk in talks.values():
                found = await talk.turn(engine, question)
                assert evaluated(found) < 40, talk.name
        plain = Talk("")
        plain.messages = talks["ann"].messages[:-2]
        again = await answer(engine, plain.asks("And what of the money?", bypass_cache=True))
        assert again.cached_tokens == 0
        assert talks["ann"].messages[-1].content == again.text
        assert {outcome for _, outcome in moved(events)} == {"ok"}
        assert len(engine.files()) <= len(talks) + 1, "one a session, and what was lent"
        await all_is_well(engine)


async def test_a_long_answer_to_a_short_question_is_moved_with_it() -> None:
    long = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
    async with running() as engine:
        talks = [Talk(name) for name in STORIES]
        for talk in talks:
            found = await talk.turn(engine, f"Tell of {talk.name}.", **long)
            assert len(found.text) > 100
        for talk in talks:
            assert evaluated(await talk.turn(engine, "Go on.")) < 30


async def test_a_first_turn_begins_from_the_system_prompt_of_another_session() -> None:
    async with running(slots=1) as engine:
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        first = await answer(engine, Talk("").asks("Say it.", bypass_cache=True))
        assert first.cached_tokens == 0
        found = await Talk("new").turn(engine, "Who are you?")
        assert evaluated(found) < 40


async def test_after_a_restart_the_next_turn_is_as_fast_as_any(tmp_path: Path) -> None:
    async with running(states_path=tmp_path / "kv") as engine:
        talks = await tell_all(engine)
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "kv").iterdir()} == {0}
    events: list[Event] = []
    async with running(events, states_path=tmp_path / "kv") as engine:
        for talk in talks.values():
            found = await talk.turn(engine, "What came in?")
            assert evaluated(found) < 40
            request = replace(talk.asks(""), messages=talk.messages[:-1], session_key="")
            private = replace(request.options, bypass_cache=True)
            plain = await answer(engine, replace(request, options=private))
            assert plain.text == found.text
        assert ("restore", "ok") in moved(events)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "seal", "foreign", "stale"])
async def test_a_file_that_is_not_right_costs_time_and_an_event_and_no_answer(
    how: str, tmp_path: Path
) -> None:
    kv = tmp_path / "kv"
    talk = Talk("ann")
    async with running(states_path=kv) as engine:
        await talk.turn(engine, STORIES["ann"] * 4)
    [file] = kv.glob("*.kv")
    content = file.read_bytes()
    middle = len(content) // 2
    spoil: dict[str, Callable[[], object]] = {
        "flipped": lambda: file.write_bytes(
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        ),
        "cut": lambda: file.write_bytes(content[:-1]),
        "gone": file.unlink,
        "seal": lambda: file.with_suffix(".seal").write_bytes(b"{"),
        "foreign": lambda: None,
        "stale": lambda: talk.messages.__setitem__(0, Message(Role.SYSTEM, "Be brief.")),
    }
    spoil[how]()
    events: list[Event] = []
    settings: dict[str, Any] = {"context_tokens": 1280} if how == "foreign" else {}
    async with running(events, states_path=kv, **settings) as engine:
        found = await talk.turn(engine, "What came in?")
        outcome = how if how in ("foreign", "stale") else "corrupt"
        assert ("restore", outcome) in moved(events)
        assert evaluated(found) > 100
        private = replace(talk.asks(""), messages=talk.messages[:-1], session_key="")
        options = replace(private.options, bypass_cache=True)
        assert (await answer(engine, replace(private, options=options))).text == found.text
        assert how == "stale" or file not in engine.files()


async def test_a_seal_that_could_not_be_written_is_none_and_goes_with_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = tmp_path / "kv"
    talk = Talk("ann")

    def full(*paths: object, **directories: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    async with running(states_path=kv) as engine:
        await talk.turn(engine, STORIES["ann"] * 4)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            await engine.cache.save()
        assert list(kv.glob("*.kv"))
        assert not list(kv.glob("*.seal"))
        engine.cache.forget("ann")
    assert [path.name for path in kv.iterdir()] == ["lock"]


async def test_of_a_session_that_has_gone_no_file_stays(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    async with running(states_path=kv) as engine:
        talks = await tell_all(engine)
        await engine.cache.save()
        assert len(list(kv.glob("*.seal"))) == len(talks)
        for name in talks:
            engine.cache.forget(name)
        engine.cache.forget("nobody")
    assert [path.name for path in kv.iterdir()] == ["lock"]


async def test_what_a_session_that_has_gone_left_in_a_slot_is_lent_to_nobody() -> None:
    short = SYSTEM[:160]
    async with running() as engine:
        talk = Talk("ann")
        talk.messages = [Message(Role.SYSTEM, short)]
        await talk.turn(engine, STORIES["ann"] * 2)
        engine.cache.forget("ann")
        other = Talk("ben")
        other.messages = [Message(Role.SYSTEM, short)]
        await other.turn(engine, STORIES["ben"] * 2)
        assert engine.files() == []


async def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    async with running(states_path=kv) as engine:
        await tell_all(engine)
    sizes = sorted(path.stat().st_size for path in kv.glob("*.kv"))
    async with running(states_path=kv, states_bytes=sizes[-1] + 1):
        assert len(list(kv.glob("*.kv"))) == 1
    async with running(states_path=kv, states_bytes=0):
        assert [path.name for path in kv.iterdir()] == ["lock"]


async def test_only_files_of_ours_are_deleted_in_a_directory_that_has_others(
    tmp_path: Path,
) -> None:
    kv = tmp_path / "kv"
    async with running(states_path=kv):
        pass
    names = {"model.kv", "upload.part", "letter.seal"}
    for name in names:
        (kv / name).write_text("mine")
    (kv / f"{'0' * 24}.kv").write_text("left by a daemon that was killed")
    async with running(states_path=kv):
        pass
    assert {path.name for path in kv.iterdir()} == names | {"lock"}


async def test_with_a_directory_that_is_not_ruvds_all_is_answered_and_nothing_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "letter.txt").write_text("mine")
    events: list[Event] = []
    # Idle work would evaluate the prompt before it is measured.
    async with running(events, states_path=tmp_path, policy=NO_IDLE_WORK) as engine:
        talks = await tell_all(engine)
        assert evaluated(await talks["ann"].turn(engine, "What came in?")) > 40
        assert engine.files() == []
    assert set(moved(events)) == {("save", "refused")}
    assert caplog.text.count("the KV cache is off") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


async def test_a_turn_waits_while_its_session_is_moved_out_of_its_slot() -> None:
    async with running(policy=NO_IDLE_WORK) as engine:
        ann, ben, cay = (Talk(name) for name in ("ann", "ben", "cay"))
        for talk in (ann, ben, ann, ben):  # the second turns are in no file yet
            await talk.turn(engine, STORIES[talk.name] * 2)
        save = engine.wire.gate("save")
        first = asyncio.create_task(cay.turn(engine, STORIES["cay"] * 4))
        await save.reached.wait()
        second = asyncio.create_task(ann.turn(engine, "What came in?"))
        await asyncio.sleep(0)
        save.open()
        await first
        assert evaluated(await second) < 40


async def test_a_turn_that_is_cut_in_its_restore_leaves_its_session_one_slot(
    tmp_path: Path,
) -> None:
    async with running(states_path=tmp_path / "kv", policy=NO_IDLE_WORK) as engine:
        talks = [Talk(name) for name in ("ann", "ben", "cay")]
        for talk in talks:
            await talk.turn(engine, STORIES[talk.name] * 4)
        restore = engine.wire.gate("restore")
        cut = asyncio.create_task(talks[0].turn(engine, "What came in?"))
        await restore.reached.wait()
        cut.cancel()
        again = asyncio.create_task(talks[0].turn(engine, "What came in?"))
        await asyncio.sleep(0)
        restore.open()
        assert evaluated(await again) < 40
        assert engine.wire.slots("chat")[-1] == engine.wire.slots("restore")[-1]
        for talk in talks:
            engine.cache.forget(talk.name)
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["lock"]


@pytest.mark.parametrize("action", ["save", "restore"])
async def test_a_state_outlives_a_crash_of_the_engine(action: str) -> None:
    async with running(slots=1, policy=NO_IDLE_WORK) as engine:
        ann, ben = Talk("ann"), Talk("ben")
        for talk in (ann, ben):
            await talk.turn(engine, STORIES[talk.name] * 4)
        pid = engine.pid
        assert pid is not None

        def kill(call: Call) -> None:
            if call.kind == action and engine.pid == pid:
                os.kill(pid, signal.SIGKILL)

        engine.wire.before = kill
        with suppress(EngineUnavailable):  # if it was at work already
            await ann.turn(engine, "What came in?")
        assert evaluated(await ann.turn(engine, "And what of the money?")) < 60
        assert engine.pid != pid


async def test_a_private_turn_leaves_no_file_and_takes_nobodys_history(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    async with running(states_path=kv, slots=1) as engine:
        talk = Talk("ann")
        await talk.turn(engine, STORIES["ann"] * 4)
        private = Talk("ben").asks(STORIES["ben"] * 4, bypass_cache=True)
        assert (await answer(engine, private)).cached_tokens == 0
        assert evaluated(await talk.turn(engine, "What came in?")) < 40
    assert len(list(kv.glob("*.kv"))) == 1


async def test_two_daemons_do_not_share_a_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(states_path=tmp_path / "kv"), running(states_path=tmp_path / "kv") as second:
        assert "another daemon has it" in caplog.text
        await tell_all(second)
        assert second.files()
    assert not list((tmp_path / "kv").glob("*.kv"))


async def test_a_prompt_is_evaluated_ahead_in_steps_and_the_turn_finds_it() -> None:
    async with running(slots=1) as engine:
        talk = Talk("ann")
        for story in STORIES.values():
            await talk.turn(engine, story * 2)
        talk.messages = [talk.messages[0], *talk.messages[5:]]  # trimmed
        request = replace(talk.asks(""), messages=talk.messages)
        async with aclosing(engine.cache.prepare(request)) as steps:
            counts = [step.tokens async for step in steps]
        assert sum(counts) > 60
        assert max(counts) <= STEP_TOKENS + 1
        assert evaluated(await talk.turn(engine, "What came in?")) < 40
        request = replace(talk.asks(""), messages=talk.messages)
        async with aclosing(engine.cache.prepare(request)) as steps:
            again = [step.tokens async for step in steps]
        assert sum(again) < 20, "what was evaluated is not evaluated again"


async def test_a_caller_who_comes_meanwhile_waits_for_one_step() -> None:
    async with running(slots=1) as engine:
        talk = Talk("ann")
        talk.messages.append(Message(Role.USER, STORIES["ann"] * 12))
        talk.messages.append(Message(Role.ASSISTANT, "Yes."))
        request = replace(talk.asks(""), messages=talk.messages)
        steps = engine.cache.prepare(request)
        first = await anext(steps)
        second = asyncio.create_task(anext(steps))
        await asyncio.sleep(0)
        found = await answer(engine, talk.asks("What came in?"))
        assert second.done()
        assert found.cached_tokens >= first.tokens + second.result().tokens - 2
        assert evaluated(found) > STEP_TOKENS
        await steps.aclose()
        await all_is_well(engine)


async def test_a_turn_that_comes_while_its_session_is_prepared_loses_nothing(
    tmp_path: Path,
) -> None:
    """There would be two slots of the session, and the one with less of it be saved last."""
    kv = tmp_path / "kv"
    talk = Talk("ann")
    talk.messages.append(Message(Role.USER, STORIES["ann"] * 12))
    talk.messages.append(Message(Role.ASSISTANT, "Yes."))
    request = replace(talk.asks(""), messages=talk.messages)
    async with running(states_path=kv, policy=NO_IDLE_WORK) as engine:
        other, step = engine.wire.gate("chat"), engine.wire.gate("completion")
        steps = engine.cache.prepare(request)
        # So that the turn would have an earlier slot.
        asked = asyncio.create_task(answer(engine, Talk("").asks("Who are you?")))
        await other.reached.wait()
        first = asyncio.create_task(anext(steps))
        await step.reached.wait()
        other.open()
        await asked
        turn = asyncio.create_task(talk.turn(engine, "What came in?"))
        await asyncio.sleep(0)
        step.open()
        await turn
        await first
        await steps.aclose()
        assert engine.wire.slots("chat")[-1] == engine.wire.slots("completion")[0]
    async with running(states_path=kv) as engine:
        assert evaluated(await talk.turn(engine, "And then?")) < 40


async def test_nothing_is_prepared_beside_a_turn_of_the_session() -> None:
    talk = Talk("ann")
    async with running(policy=NO_IDLE_WORK) as engine:
        first_token = engine.wire.gate("chat")
        turn = asyncio.create_task(answer(engine, talk.asks("What came in?")))
        await first_token.reached.wait()
        steps = engine.cache.prepare(talk.asks(STORIES["ann"] * 12))
        assert [step async for step in steps] == []
        assert not engine.wire.slots("completion")
        first_token.open()
        await turn
