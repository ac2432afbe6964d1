"""Work on idle slots on a real llama.cpp: the evaluation of what follows an answer, and saves."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from embedded import (
    NEVER,
    SERVER,
    STORIES,
    Call,
    Talk,
    WatchedEngine,
    all_is_well,
    answer,
    evaluated,
    moved,
    running,
    tell_all,
    until,
)

from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event, PromptEvaluated

# The model's own template, with what stands around all messages and in an answer.
TEMPLATE = """{head}\
{{% for message in messages %}}{{{{ '<|im_start|>' + message.role + '\\n' }}}}\
{{% if message.role == 'assistant' %}}{answer}{{% else %}}{{{{ message.content }}}}{{% endif %}}\
{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}\
{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"""
AS_GENERATED = "{{ message.content }}"


def ahead(events: list[Event]) -> list[str]:
    return [event.session_key for event in events if isinstance(event, PromptEvaluated)]


async def test_what_follows_an_answer_is_evaluated_before_the_next_turn() -> None:
    counts: dict[bool, int] = {}
    for setting in (False, True):
        events: list[Event] = []
        async with running(events, evaluate_ahead=setting) as engine:
            talk = Talk("ann")
            await talk.turn(engine, STORIES["ann"] * 4)
            await engine.idle_work_done()
            assert ahead(events) == (["ann"] if setting else [])
            found = await talk.turn(engine, "What came in?")
            counts[setting] = evaluated(found)
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
        await engine.idle_work_done()
        assert ahead(events) == ["cay"]


async def test_nothing_goes_on_while_somebody_waits_for_a_first_token() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        first_token = engine.wire.gate("chat", STORIES["ben"])
        endless = {"max_tokens": 700, "extra_body": {"ignore_eos": True}}
        ben = asyncio.create_task(Talk("ben").turn(engine, STORIES["ben"], **endless))
        await first_token.reached.wait()
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        await engine.sleep.checks(3)
        assert ahead(events) == []
        first_token.open()

        async def has_gone_on() -> bool:
            return ahead(events) == ["ann"]

        await until(has_gone_on)
        assert not ben.done(), "the other answer need not end"
        ben.cancel()
        await asyncio.wait([ben])


async def test_a_turn_that_comes_meanwhile_finds_what_was_evaluated() -> None:
    async with running() as engine:
        step = engine.wire.gate("completion")
        talk = Talk("ann")
        first = await talk.turn(engine, STORIES["ann"] * 4)
        await step.reached.wait()
        second = asyncio.create_task(talk.turn(engine, "What came in?"))
        await asyncio.sleep(0)
        step.open()
        assert (await second).cached_tokens > first.prompt_tokens
        assert len(set(engine.wire.slots("chat"))) == 1, "the session has one slot"
        await all_is_well(engine)


async def test_of_a_session_that_ends_meanwhile_nothing_is_kept(tmp_path: Path) -> None:
    events: list[Event] = []
    async with running(events, states_path=tmp_path / "kv") as engine:

        def end(call: Call) -> None:
            if call.kind == "completion":
                engine.cache.forget("ann")

        engine.wire.before = end
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        await engine.idle_work_done()
        assert engine.wire.slots("completion"), "it was evaluated"
        assert ahead(events) == []
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["lock"]


async def test_an_engine_that_dies_meanwhile_is_only_started_again() -> None:
    async with running() as engine:
        pid = engine.pid
        assert pid is not None

        def kill(call: Call) -> None:
            if call.kind == "completion" and engine.pid == pid:
                os.kill(pid, signal.SIGKILL)

        engine.wire.before = kill
        talk = Talk("ann")
        await talk.turn(engine, STORIES["ann"] * 4)

        async def is_another() -> bool:
            return engine.pid not in (None, pid)

        await until(is_another)
        assert (await talk.turn(engine, "What came in?")).text
        await engine.idle_work_done()


async def test_a_stop_meanwhile_loses_nothing(tmp_path: Path) -> None:
    talk = Talk("ann")
    async with running(states_path=tmp_path / "kv") as engine:
        step = engine.wire.gate("completion")
        await talk.turn(engine, STORIES["ann"] * 4)
        await step.reached.wait()
    async with running(states_path=tmp_path / "kv") as engine:
        assert evaluated(await talk.turn(engine, "What came in?")) < 40


async def test_a_history_that_fills_its_slot_is_left_as_it_is() -> None:
    events: list[Event] = []
    async with running(events, context_tokens=256, answer_tokens=32) as engine:
        talk = Talk("ann")
        talk.messages = [Message(Role.SYSTEM, "Be brief.")]
        fill = {"max_tokens": 230, "extra_body": {"ignore_eos": True}}
        await talk.turn(engine, "Tell a long story.", **fill)
        await engine.idle_work_done()
        assert ahead(events) == []
        await all_is_well(engine)


@pytest.mark.parametrize(
    ("head", "written", "sessions"),
    [
        pytest.param("", AS_GENERATED, ["ann"], id="as it was generated"),
        pytest.param("", "{{ message.content[3:] }}", [], id="without thoughts"),
        pytest.param("{{ messages | length }} ", AS_GENERATED, [], id="with another head"),
        pytest.param("", AS_GENERATED + " and so on" * 40, [], id="with a long end"),
    ],
)
async def test_an_answer_that_the_template_writes_in_another_way_is_left_as_it_is(
    head: str, written: str, sessions: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "llama-server"
    path.write_text(SERVER)
    path.chmod(0o755)
    template = TEMPLATE.format(head=head, answer=written)
    arguments = ["--extra", "yes", "--chat-template", template]
    events: list[Event] = []
    async with running(events, server_path=path, server_args=arguments) as engine:
        await Talk("ann").turn(engine, STORIES["ann"] * 8)
        await engine.idle_work_done()
        assert ahead(events) == sessions


async def test_it_is_written_with_the_options_of_the_turn() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        options = {"extra_body": {"chat_template_kwargs": {"effort": "high"}}}
        await Talk("ann").turn(engine, STORIES["ann"], **options)
        await engine.idle_work_done()
        assert ahead(events) == ["ann"]
        written = [call.body for call in engine.wire.calls if call.kind == "apply-template"]
    assert written
    assert all(body["chat_template_kwargs"] == {"effort": "high"} for body in written)


async def test_a_session_that_ends_before_its_turn_to_go_on_comes_stays_ended() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        step = engine.wire.gate("completion")
        await asyncio.gather(
            Talk("ann").turn(engine, STORIES["ann"] * 4),
            Talk("ben").turn(engine, STORIES["ben"] * 4),
        )
        await step.reached.wait()
        first, second = in_the_order_of_steps(engine)
        engine.cache.forget(second)
        step.open()
        await engine.idle_work_done()
        assert len(engine.wire.slots("completion")) == 1
        assert ahead(events) == [first]


def in_the_order_of_steps(engine: WatchedEngine) -> tuple[str, str]:
    """Ann and Ben, first the one whose slot the first step is in."""
    is_ann = engine.wire.slots("chat", STORIES["ann"])[0] == engine.wire.slots("completion")[0]
    return ("ann", "ben") if is_ann else ("ben", "ann")


async def test_a_turn_that_waits_for_its_slot_is_waited_for() -> None:
    async with running() as engine:
        step = engine.wire.gate("completion")
        talks = {name: Talk(name) for name in ("ann", "ben")}
        await asyncio.gather(*(talk.turn(engine, STORIES[n] * 4) for n, talk in talks.items()))
        await step.reached.wait()
        first, _ = in_the_order_of_steps(engine)
        begun = len(engine.wire.calls)
        first_token = engine.wire.gate("chat")
        turn = asyncio.create_task(talks[first].turn(engine, "What came in?"))
        await asyncio.sleep(0)
        step.open()
        await first_token.reached.wait()
        await engine.sleep.checks(2)
        assert [call.kind for call in engine.wire.calls[begun:]] == ["chat"]
        first_token.open()
        await turn
        await engine.idle_work_done()
        assert len(engine.wire.slots("completion")) > 1, "the other goes on at last"


async def test_who_comes_before_the_step_goes_first() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        writing = engine.wire.gate("apply-template")
        first_token = engine.wire.gate("chat", STORIES["ben"])
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        await writing.reached.wait()
        ben = asyncio.create_task(
            answer(engine, Talk("ben").asks(STORIES["ben"], bypass_cache=True))
        )
        await first_token.reached.wait()
        writing.open()
        await engine.sleep.checks(2)
        assert not engine.wire.slots("completion")
        first_token.open()
        await ben
        await engine.idle_work_done()
        assert ahead(events) == ["ann"]


async def test_with_more_sessions_than_slots_the_next_to_go_is_saved_at_once() -> None:
    async with running(policy={"full_rest_seconds": NEVER}) as engine:
        talks = await tell_all(engine)
        restores = 0
        for name, talk in talks.items():
            await engine.idle_work_done()
            before = len(engine.wire.calls)
            assert evaluated(await talk.turn(engine, "What came in?")) < 40, name
            kinds = [call.kind for call in engine.wire.calls[before:]]
            waited_for = kinds[: kinds.index("chat")]
            assert "save" not in waited_for, "no turn waits for a save"
            restores += "restore" in waited_for
        assert restores >= len(talks) - 2
        assert len(engine.files()) <= len(talks) + 1


async def idle_saves(engine: WatchedEngine, talk: Talk) -> int:
    """The number of saves of idle slots from when a turn begins to be answered."""
    before = len(engine.wire.calls)
    await talk.turn(engine, STORIES[talk.name] * 2)
    await engine.sleep.checks(2)
    kinds = [call.kind for call in engine.wire.calls[before:]]
    return kinds[kinds.index("chat") :].count("save")


async def test_a_session_that_sleeps_is_no_reason_to_save_the_others_at_once() -> None:
    async with running(policy={"full_rest_seconds": NEVER, "crowded_seconds": 0.0}) as engine:
        names = (*STORIES, "cay", "dee", "cay", "dee")
        talks = {name: Talk(name) for name in STORIES}
        assert [await idle_saves(engine, talks[name]) for name in names] == [0] * len(names)


async def test_a_save_that_failed_is_not_tried_again_at_once() -> None:
    policy = {"full_rest_seconds": NEVER, "rest_seconds": NEVER}
    async with running(policy=policy) as engine:

        def fail(call: Call) -> None:
            if call.kind == "save":
                raise httpx.ReadError("the disk is full")

        engine.wire.before = fail
        talks = [Talk(name) for name in STORIES]
        assert sum([await idle_saves(engine, talk) for talk in talks * 2]) == 1


async def test_with_as_many_sessions_as_slots_nothing_is_saved_at_once() -> None:
    policy = {"full_rest_seconds": NEVER, "rest_seconds": NEVER}
    events: list[Event] = []
    async with running(events, policy=policy) as engine:
        for name in ("ann", "ben") * 2:
            await Talk(name).turn(engine, STORIES[name] * 2)
            await engine.idle_work_done()
        saves = [each for each in moved(events) if each[0] == "save"]
        assert len(saves) <= 1, "what was lent for the system prompt"


async def test_what_rests_is_saved_without_being_told_to(tmp_path: Path) -> None:
    async with running(states_path=tmp_path / "kv", policy={"rest_seconds": 0.0}) as engine:
        await Talk("ann").turn(engine, STORIES["ann"] * 4)

        async def is_sealed() -> bool:
            return bool(list((tmp_path / "kv").glob("*.seal")))

        await until(is_sealed)


async def test_where_every_slot_holds_a_session_the_next_one_waits_for_no_save() -> None:
    events: list[Event] = []
    async with running(events, policy={"full_rest_seconds": 0.0}) as engine:
        for name in ("ann", "ben"):
            await Talk(name).turn(engine, STORIES[name] * 4)
        await engine.idle_work_done()
        engine.sleep.stop()
        before = len(events)
        await Talk("cay").turn(engine, "What came in?")
        assert ("save", "ok") not in moved(events[before:])


async def test_nothing_is_saved_ahead_while_somebody_waits_for_a_first_token() -> None:
    policy = {"full_rest_seconds": 0.0, "contention_checks": 10_000}
    events: list[Event] = []
    async with running(events, slots=3, policy=policy) as engine:
        first_token = engine.wire.gate("chat", STORIES["ben"])
        other = Talk("cay")
        other.messages = [Message(Role.SYSTEM, "Be brief.")]  # so that nothing is lent to it
        ben = asyncio.create_task(Talk("ben").turn(engine, STORIES["ben"]))
        await first_token.reached.wait()
        await Talk("ann").turn(engine, STORIES["ann"] * 4)
        await other.turn(engine, STORIES["cay"] * 4)  # time to save ann's, who rests
        assert ("save", "ok") not in moved(events)
        first_token.open()
        await ben

        async def is_saved() -> bool:
            return ("save", "ok") in moved(events)

        await until(is_saved)
