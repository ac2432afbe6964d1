"""Slots and shared prefixes on a real llama.cpp: what its own counters say was cached."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import embedded
import pytest
from embedded import NO_IDLE_WORK, all_is_well, answer, until

from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineRequest

DOCUMENTS = {
    "harbour": "The harbour master writes down each ship, its captain and its cargo at dusk. "
    "The lamps are lit by the keeper, who has a boat of his own and a grey dog. " * 8,
    "garden": "The gardener waters the beans in the morning, before the sun is above the wall. "
    "In autumn he gives the apples to the school, and keeps the pears for himself. " * 8,
    "code": "def add(a, b):\n    return a + b\n\n\nclass Ledger:\n    def total(self):\n"
    "        return sum(entry.amount for entry in self.entries)\n\n" * 10,
}
QUESTIONS = ("Who lives here?", "What is done first?", "Name a thing.", "Why?", "Sum it up.")


running = partial(embedded.running, slots=3)


def ask(
    document: str, question: str, key: str = "", session: str = "", **options: Any
) -> EngineRequest:
    settings = {"max_tokens": 8, "temperature": 0.0, **options}
    messages = [Message(Role.SYSTEM, document), Message(Role.USER, question)]
    return EngineRequest(messages, CompletionOptions(**settings), session, key)


async def test_a_shared_prefix_is_evaluated_once_and_the_server_says_so() -> None:
    async with running() as engine:
        document = DOCUMENTS["harbour"]
        first = await answer(engine, ask(document, QUESTIONS[0], "k"))
        assert first.cached_tokens < 20, "what was evaluated for it is not told as cached"
        assert first.prefill_seconds > 0
        assert len(engine.files()) == 1
        others = await asyncio.gather(
            *(answer(engine, ask(document, question, "k")) for question in QUESTIONS[1:4])
        )
        for other in others:
            assert other.prompt_tokens - other.cached_tokens < 40
            assert other.cached_tokens > 200
        assert set(engine.wire.slots("chat")) == {0, 1, 2}, "every slot has it"


async def test_after_a_restore_the_text_is_that_without_a_cache() -> None:
    async with running() as engine:
        same = 0
        for name, document in DOCUMENTS.items():
            await answer(engine, ask(document, "Begin.", name))
            shared = await asyncio.gather(
                *(answer(engine, ask(document, each, name)) for each in QUESTIONS[:3])
            )
            for question, found in zip(QUESTIONS, shared, strict=False):
                plain = await answer(engine, ask(document, question, bypass_cache=True))
                assert plain.cached_tokens == 0
                assert found.cached_tokens > 200
                same += found.text == plain.text
        # Greedy decoding is a tie now and then, which the order of additions decides.
        assert same >= 8


async def test_a_session_stays_in_its_slot_beside_a_batch() -> None:
    async with running() as engine:
        document = DOCUMENTS["garden"]
        request = ask(document, "Who are you?", session="s")
        await answer(engine, request)
        await asyncio.gather(
            *(answer(engine, ask(DOCUMENTS["code"], each, "k")) for each in QUESTIONS[:2])
        )
        turn = [*request.messages, Message(Role.ASSISTANT, "Me."), Message(Role.USER, "And now?")]
        again = await answer(engine, replace(request, messages=turn))
        assert again.prompt_tokens - again.cached_tokens < 40


async def test_with_one_slot_nothing_is_saved() -> None:
    async with running(slots=1) as engine:
        for question in QUESTIONS[:2]:
            found = await answer(engine, ask(DOCUMENTS["harbour"], question, "k"))
        assert found.cached_tokens > 200
        assert engine.files() == []


async def test_files_are_bounded_and_the_oldest_go_first() -> None:
    async with running(slots=2, states_bytes=1) as engine:
        await answer(engine, ask(DOCUMENTS["garden"], "Why?", "k"))
        assert engine.files() == [], "what alone is too large is not kept"
    async with running(slots=2) as engine:
        await answer(engine, ask(DOCUMENTS["garden"], "Why?", "k"))
        [size] = [path.stat().st_size for path in engine.files()]
    async with running(slots=2, states_bytes=round(2.5 * size)) as engine:
        kept: list[list[Path]] = []
        for number, document in enumerate([*DOCUMENTS.values(), DOCUMENTS["garden"]]):
            await answer(engine, ask(f"{number} {document}", "Why?", f"k{number}"))
            kept.append(engine.files())
        assert [len(each) for each in kept] == [1, 2, 2, 2]
        assert not set(kept[0]) & set(kept[2])
        directory = engine.files()[0].parent
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in engine.files()} == {0o600}
    assert not directory.exists()


async def test_what_alone_is_too_large_is_not_tried_again() -> None:
    async with running(states_bytes=1000) as engine:
        for question in QUESTIONS[:3]:
            await answer(engine, ask(DOCUMENTS["harbour"], question, "k"))
        assert engine.files() == []
        assert len(engine.wire.slots("save")) == 1
        assert not engine.wire.slots("restore")


async def test_without_a_budget_nothing_is_written() -> None:
    async with running(states_bytes=0) as engine:
        for question in QUESTIONS[:3]:
            await answer(engine, ask(DOCUMENTS["harbour"], question, "k"))
        assert engine.files() == []
        assert [path.name for path in engine.directory.iterdir()] == ["s.sock"]


async def test_a_file_that_is_gone_or_broken_costs_time_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as engine:
        document = DOCUMENTS["harbour"]
        await answer(engine, ask(document, QUESTIONS[0], "k"))
        plain = await answer(engine, ask(document, QUESTIONS[1], bypass_cache=True))
        for spoil in (lambda path: path.write_bytes(b"nonsense"), Path.unlink):
            [path] = engine.files()
            spoil(path)
            with caplog.at_level(logging.WARNING, "ruvd.engine"):
                found = await asyncio.gather(
                    *(answer(engine, ask(document, QUESTIONS[1], "k")) for _ in range(3))
                )
                # Those slots have it by now; others get new content.
                for number in range(3):
                    await answer(engine, ask(f"{number} " * 300, "?", bypass_cache=True))
            assert plain.text in [each.text for each in found]
        assert "could not be restored" in caplog.text
        await all_is_well(engine)


async def test_after_a_crash_the_table_is_empty_and_the_files_are_there() -> None:
    async with running() as engine:
        request = ask(DOCUMENTS["harbour"], QUESTIONS[0], "k")
        await answer(engine, request)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        pid = engine.pid

        async def is_another() -> bool:
            return engine.pid not in (None, pid)

        await until(is_another)
        assert (await answer(engine, request)).cached_tokens > 200, "a file has it still"
        assert len(engine.wire.slots("restore")) == 1
        assert len(engine.files()) == 1
        await all_is_well(engine)


async def test_the_first_of_a_prefix_may_be_cancelled_and_the_next_one_does_its_work() -> None:
    async with running(context_tokens=4096, batch_tokens=64) as engine:
        await engine.ready()
        document = DOCUMENTS["harbour"] * 3
        first = asyncio.create_task(answer(engine, ask(document, QUESTIONS[0], "k")))
        second = asyncio.create_task(answer(engine, ask(document, QUESTIONS[1], "k")))

        await until(engine.wire.busy)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert (await second).prompt_tokens > 600
        assert len(engine.files()) == 1
        third = await answer(engine, ask(document, QUESTIONS[2], "k"))
        assert third.prompt_tokens - third.cached_tokens < 40
        await all_is_well(engine)


@pytest.mark.parametrize("action", ["save", "restore"])
async def test_cancelling_a_save_or_a_restore_lets_it_end_and_frees_the_slot(action: str) -> None:
    async with running(slots=2, policy=NO_IDLE_WORK) as engine:
        document, move = DOCUMENTS["harbour"], engine.wire.gate(action)
        tasks = [
            asyncio.create_task(answer(engine, ask(document, QUESTIONS[0], "k", max_tokens=99)))
        ]
        if action == "restore":

            async def is_saved() -> bool:
                return len(engine.files()) == 1

            await until(is_saved)
            tasks.append(asyncio.create_task(answer(engine, ask(document, QUESTIONS[1], "k"))))
        async with asyncio.timeout(20):
            await move.reached.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        [moving] = engine.wire.slots(action)
        before = len(engine.wire.calls)
        await asyncio.gather(*(answer(engine, ask("Be brief.", each)) for each in QUESTIONS))
        assert {call.slot for call in engine.wire.calls[before:]} == {1 - (moving or 0)}
        move.open()
        await all_is_well(engine)
        found = await answer(engine, ask(document, QUESTIONS[2], "k"))
        assert found.prompt_tokens - found.cached_tokens < 40, "what was saved is of use"


async def test_a_private_call_with_a_prefix_key_neither_uses_nor_leaves_anything() -> None:
    async with running() as engine:
        request = ask(DOCUMENTS["harbour"], QUESTIONS[0], "k", bypass_cache=True)
        async with aclosing(engine.generate(request)) as chunks:
            await anext(chunks)
        assert engine.files() == []
        assert (await answer(engine, replace(request, prefix_key=""))).cached_tokens == 0
        public = replace(request, options=replace(request.options, bypass_cache=False))
        assert (await answer(engine, replace(public, prefix_key=""))).cached_tokens < 20


async def test_a_shared_prefix_goes_with_the_session_whose_turn_it_was_evaluated_for() -> None:
    async with running() as engine:
        document = DOCUMENTS["harbour"]
        await answer(engine, ask(document, "What only Ann knows: 1234.", "k", "ann"))
        assert engine.files()
        engine.cache.forget("ann")

        async def gone() -> bool:
            return not engine.files()

        await until(gone)
        await answer(engine, ask(document, QUESTIONS[0], "k", "ben"))
        shared = await answer(engine, ask(document, QUESTIONS[1], "k", "cay"))
        assert shared.cached_tokens > 200


async def test_a_session_that_ends_while_its_prefix_is_saved_leaves_no_file() -> None:
    async with running() as engine:
        gate = engine.wire.gate("save")
        asking = asyncio.create_task(
            answer(engine, ask(DOCUMENTS["harbour"], QUESTIONS[0], "k", "ann"))
        )
        await gate.reached.wait()
        engine.cache.forget("ann")
        gate.open()
        await asking
        assert engine.files() == []
