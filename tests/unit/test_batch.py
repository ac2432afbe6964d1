"""Batches in the core: bounded, in order within a session, each item alone with its failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from core import Core, collect, settle
from fakes import ScriptedEngine, done
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.completions.batch import Batches, BatchOutcome, BatchSummary
from ruvd.core.completions.completion import CompletionPolicy, CompletionRequest
from ruvd.core.completions.shared_prefixes import beginning, group
from ruvd.core.errors import (
    EngineRateLimited,
    EngineRejected,
    EngineUnavailable,
    FieldViolation,
    InvalidRequest,
    RuvdError,
    ShuttingDown,
)
from ruvd.core.model import Message, Role, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import CompletionEnded
from ruvd.core.tenant_limits import TenantLimits


def item(text: str = "hi", session_id: str = "", **fields: object) -> CompletionRequest:
    messages = (Message(Role.USER, text),)
    return CompletionRequest(messages, session_id, **fields)  # type: ignore[arg-type]


@dataclass
class Reader:
    """Reads a batch as its caller does, and keeps what it got."""

    core: Core
    items: Sequence[CompletionRequest | RuvdError]
    max_concurrency: int = 0
    outcomes: list[BatchOutcome] = field(default_factory=list)
    summary: BatchSummary | None = None

    def stream(self) -> AsyncGenerator[BatchOutcome | BatchSummary, None]:
        batches = Batches(self.core.completions, self.core.clock, 32, sleep=self.sleep)
        return batches.run(self.items, self.max_concurrency)

    async def sleep(self, seconds: float) -> None:
        """Lets the clock go on instead of waiting."""
        self.core.clock.advance(seconds)
        await asyncio.sleep(0)

    async def read(self) -> None:
        async with aclosing(self.stream()) as events:
            async for event in events:
                assert self.summary is None, "the summary is the last"
                if isinstance(event, BatchSummary):
                    self.summary = event
                else:
                    self.outcomes.append(event)


async def run(
    core: Core, *items: CompletionRequest | RuvdError, max_concurrency: int = 0
) -> Reader:
    reader = Reader(core, items, max_concurrency)
    await reader.read()
    assert sorted(outcome.index for outcome in reader.outcomes) == list(range(len(items)))
    return reader


@pytest.fixture
def core() -> Core:
    return Core()


async def test_an_empty_batch_is_just_a_summary(core: Core) -> None:
    reader = await run(core)
    assert reader.summary == BatchSummary()


async def test_the_summary_adds_up_what_came(core: Core) -> None:
    core.engine.scripts = [
        [EngineText("a"), done(10, 4, 2)],
        [EngineText("b"), done(20, None, 3)],
        [EngineRejected("no")],
    ]
    reader = await run(core, item("1"), item("2"), item("3"), max_concurrency=1)
    assert reader.summary is not None
    assert (reader.summary.succeeded, reader.summary.failed) == (2, 1)
    assert reader.summary.usage == Usage(30, 4, 5)
    (failed,) = [outcome for outcome in reader.outcomes if outcome.error]
    assert (failed.index, type(failed.error)) == (2, EngineRejected)


async def test_an_item_that_was_refused_fails_alone(core: Core) -> None:
    wrong = InvalidRequest([FieldViolation("messages", "must not be empty")])
    reader = await run(core, wrong, item("fine"))
    outcomes = {outcome.index: outcome for outcome in reader.outcomes}
    assert outcomes[0].error is wrong
    assert outcomes[1].finished is not None


async def test_a_bug_beside_the_items_fails_the_call_which_would_wait_for_ever(core: Core) -> None:
    async def broken(seconds: float) -> None:
        raise KeyError("a bug")

    core.engine.scripts = [[EngineRateLimited("busy")]]
    batches = Batches(core.completions, core.clock, 32, sleep=broken)
    async with asyncio.timeout(60), aclosing(batches.run([item("1"), item("2")])) as outcomes:
        with pytest.raises(KeyError):
            async for _ in outcomes:
                pass


async def test_even_a_bug_in_one_item_ends_only_that_one(core: Core) -> None:
    core.engine.scripts = [[RuntimeError("a bug")]]
    reader = await run(core, item("1"), item("2"), max_concurrency=1)
    assert isinstance(reader.outcomes[0].error, RuntimeError)
    assert reader.outcomes[1].finished is not None


@pytest.mark.parametrize("failure", [EngineRejected("no"), RuntimeError("a bug")])
async def test_what_is_kept_of_an_item_that_failed_does_not_hold_the_batch(
    core: Core, failure: Exception
) -> None:
    core.engine.scripts = [[failure]]
    reader = await run(core, item("1"))
    assert reader.outcomes[0].error is failure
    assert failure.__traceback__ is None


async def test_items_of_a_session_run_in_order_and_each_sees_the_one_before(core: Core) -> None:
    items = [item(f"{name}{turn}", name) for turn in range(4) for name in "abc"]
    await run(core, *items)
    for name in "abc":
        history = await core.history(name)
        assert history[::2] == [f"{name}{turn}" for turn in range(4)]
    for prompt in core.prompts():
        assert len(prompt) == 2 * int(prompt[-1][1]) + 1


async def test_the_bound_slides_without_a_barrier(core: Core) -> None:
    slow = asyncio.Event()
    core.engine.scripts = [[slow, EngineText("slow"), done()]]
    reader = Reader(core, [item(str(index)) for index in range(10)], max_concurrency=2)
    reading = asyncio.create_task(reader.read())
    await settle()
    assert len(reader.outcomes) == 9
    assert core.engine.most_running == 2
    slow.set()
    await reading
    assert reader.outcomes[-1].index == 0


async def test_what_is_held_is_bounded_while_nobody_reads(core: Core) -> None:
    reader = Reader(core, [item(str(index)) for index in range(50)], max_concurrency=4)
    async with aclosing(reader.stream()) as events:
        await anext(events)
        await settle()
        # Four workers, of whom each holds one outcome, and one in the queue.
        assert len(core.engine.requests) <= 6
    assert core.completions.running == 0


@pytest.mark.parametrize("session_id", ["", "s"])
async def test_leaving_a_batch_stops_everything_in_it(core: Core, session_id: str) -> None:
    core.engine.scripts = [[EngineText("part"), asyncio.Event()] for _ in range(10)]
    items = [item(str(index), session_id and f"s{index}") for index in range(10)]
    reading = asyncio.create_task(Reader(core, items, max_concurrency=3).read())
    await settle()
    assert core.engine.running == 3
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await settle()
    assert (core.engine.running, core.engine.stopped, core.completions.running) == (0, 3, 0)
    assert len(core.engine.requests) == 3


async def test_a_repeated_call_runs_only_what_was_not_finished(core: Core) -> None:
    core.engine.scripts = [
        [EngineText("a"), done()],
        [EngineUnavailable("gone")],
        [EngineText("c"), done()],
    ]
    items = [
        item("1", "s", request_id="r1"),
        item("2", request_id="r2"),
        item("3", request_id="r3"),
    ]
    first = await run(core, *items, max_concurrency=1)
    assert [bool(outcome.error) for outcome in first.outcomes] == [False, True, False]
    again = await run(core, *items, max_concurrency=1)
    assert len(core.engine.requests) == 4
    answers = {outcome.index: outcome.finished for outcome in again.outcomes}
    assert [answers[index] and answers[index].message.content for index in range(3)] == [  # type: ignore[union-attr]
        "a",
        "answer 4",
        "c",
    ]


async def test_an_item_of_another_replicas_batch_waits_until_its_tenant_may_have_it() -> None:
    core = Core(limits_of=lambda _: TenantLimits(max_inflight=1))
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("x"), done()]]
    running = core.start("first", "")
    starting = asyncio.create_task(Batches(core.completions, core.clock, 32).start(item("a")))
    await settle()
    assert not starting.done()
    gate.set()
    await collect(running)
    await collect(await starting)
    ended = [each.batch for each in core.events if isinstance(each, CompletionEnded)]
    assert ended == [False, True]


async def test_interactive_completions_go_first_and_find_slots_free() -> None:
    core = Core(ScriptedEngine(slots=4), completion_policy=CompletionPolicy(batch_share=0.5))
    gates = [asyncio.Event() for _ in range(20)]
    core.engine.scripts = [[gate, EngineText("x"), done()] for gate in gates]
    reading = asyncio.create_task(Reader(core, [item(str(i)) for i in range(10)]).read())
    await settle()
    assert core.engine.running == 2
    chats = [core.start(f"chat {index}", f"c{index}") for index in range(4)]
    await settle()
    assert core.engine.running == 4
    gates[0].set()  # a batch's item ends, and the next to go is a chat
    await settle()
    assert core.prompts()[-1][-1].startswith("chat")
    for gate in gates:
        gate.set()
    await asyncio.gather(reading, *(collect(chat) for chat in chats))


async def test_a_batch_slows_down_when_the_engine_asks_and_loses_nothing(core: Core) -> None:
    limited = EngineRateLimited("slow down")
    gates = [asyncio.Event() for _ in range(16)]
    core.engine.scripts = [[limited] for _ in range(8)]
    core.engine.scripts += [[gate, EngineText("x"), done()] for gate in gates]
    items = [item(str(index), f"s{index}") for index in range(16)]
    reader = Reader(core, items, max_concurrency=8)
    reading = asyncio.create_task(reader.read())
    await settle()
    assert 1 <= core.engine.running <= 4  # eight refusals side by side halved it once or twice
    for gate in gates:
        gate.set()
        await settle()
    await reading
    assert all(outcome.finished for outcome in reader.outcomes)


async def test_an_engine_that_always_refuses_ends_the_item_with_its_error(core: Core) -> None:
    core.engine.scripts = [[EngineRateLimited("slow down")] for _ in range(100)]
    reader = await run(core, item())
    assert isinstance(reader.outcomes[0].error, EngineRateLimited)
    assert len(core.engine.requests) < 10


async def test_the_first_of_those_that_begin_alike_goes_ahead(core: Core) -> None:
    document = "The harbour is old. " * 100
    first, rest = asyncio.Event(), asyncio.Event()
    core.engine.scripts = [[first, EngineText("a"), rest, done()]]
    items = [item(f"{document} Question {index}?") for index in range(5)] + [item("another")]
    reading = asyncio.create_task(Reader(core, items).read())
    await settle()
    assert [prompt[-1][-10:] for prompt in core.prompts()] == ["uestion 0?", "another"]
    first.set()  # its prompt is evaluated, though its answer is not complete
    await settle()
    assert len(core.engine.requests) == 6
    keys = [request.prefix_key for request in core.engine.requests]
    assert keys[1] == ""
    assert keys[0]
    assert len({*keys[2:], keys[0]}) == 1
    rest.set()
    await reading


async def test_when_the_first_fails_the_others_go_on_without_it(core: Core) -> None:
    core.engine.scripts = [[EngineUnavailable("gone")]]
    document = "The harbour is old. " * 100
    reader = await run(core, *(item(f"{document} Question {index}?") for index in range(5)))
    assert [bool(outcome.error) for outcome in reader.outcomes].count(True) == 1


async def test_items_are_no_baseline_for_latency(core: Core) -> None:
    await run(core, item())
    (ended,) = [event for event in core.events if isinstance(event, CompletionEnded)]
    assert ended.batch


async def test_a_daemon_that_goes_down_fails_the_items_that_have_not_begun(core: Core) -> None:
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("a"), done()]]
    reader = Reader(core, [item("1"), item("2")], max_concurrency=1)
    reading = asyncio.create_task(reader.read())
    await settle()
    draining = asyncio.create_task(core.completions.drain(10))
    await settle()
    gate.set()
    await asyncio.gather(reading, draining)
    assert reader.outcomes[0].finished is not None
    assert isinstance(reader.outcomes[1].error, ShuttingDown)


DOCUMENT = "d" * 1500


@given(st.lists(st.text("ab", max_size=6), max_size=12), st.randoms())
def test_groups_hold_those_that_share_a_document_and_nobody_else(
    ends: list[str], random: object
) -> None:
    texts = {index: DOCUMENT + end for index, end in enumerate(ends)}
    texts |= {100 + index: "e" * 1200 + end for index, end in enumerate(ends)}
    texts |= {200: "short", 201: "short"}
    keys = group(texts)
    for kind in (range(len(ends)), range(100, 100 + len(ends))):
        assert len({keys.get(index) for index in kind}) <= 1
        assert all((index in keys) == (len(ends) > 1) for index in kind)
    assert not {200, 201} & keys.keys()
    assert len(ends) < 2 or keys[0] != keys[100]


def test_the_key_of_a_beginning_is_the_same_in_another_call() -> None:
    one = group({0: DOCUMENT + "aaa", 1: DOCUMENT + "bbb"})
    other = group({0: DOCUMENT + "xy", 7: DOCUMENT + "yx"})
    assert one[0] == other[7]


def test_tools_and_model_are_part_of_the_beginning() -> None:
    assert beginning(item("a")) != beginning(item("a", options=CompletionOptions(model="m")))
