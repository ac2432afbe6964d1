"""The slots of the embedded engine, and which one a request gets. No engine is needed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions, Tool
from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.llama.prompt import Prompt, prompt_of
from ruvd.engines.llama.slot_table import SlotTable
from ruvd.engines.llama.slots import Slot

SYSTEM = "You are the keeper of the harbour's ledger. " * 20


class Time:
    """A clock in the test's hands."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def new_table(slots: int) -> SlotTable:
    return SlotTable(slots, Time())


def ask(
    text: str, session: str = "", *, system: str = SYSTEM, bypass_cache: bool = False
) -> EngineRequest:
    messages = [Message(Role.SYSTEM, system), Message(Role.USER, text)]
    options = CompletionOptions(bypass_cache=bypass_cache)
    return EngineRequest(messages, options, session_key=session)


async def serve(table: SlotTable, request: EngineRequest) -> int:
    """Hold a slot as a completion does; its number."""
    async with table.acquire(request) as slot:
        if request.options.bypass_cache:
            slot.clear()  # it is erased
        else:
            slot.set_content(prompt_of(request), request.session_key)
        return slot.id


async def test_a_session_comes_back_to_its_slot() -> None:
    table = new_table(3)
    slots = {name: await serve(table, ask(f"I am {name}", name)) for name in "abc"}
    assert sorted(slots.values()) == [0, 1, 2]
    for name in "bcacab":
        assert await serve(table, ask(f"I am {name}, and", name)) == slots[name]


async def test_a_session_adopts_what_was_prepared_beside_its_own_slot() -> None:
    table = new_table(3)
    own = await serve(table, ask("I am a", "a"))
    other = await serve(table, ask("I am b", "b"))
    table.adopt("a", "a+compacted")  # nothing was prepared, so nothing changes
    assert await serve(table, ask("I am a", "a")) == own
    prepared = await serve(table, ask("The summary of a", "a+compacted"))
    assert prepared not in (own, other), "the session keeps its prompt until then"
    table.adopt("a", "a+compacted")
    assert await serve(table, ask("The summary of a, and", "a")) == prepared
    assert [slot.id for slot in table.unsaved(0.0) if slot.session_key == "a"] == [prepared]
    assert await serve(table, ask("I am c", "c")) == own, "its former slot is free for others"


async def test_there_is_room_while_a_slot_has_no_session() -> None:
    table = new_table(2)
    await serve(table, ask("I am a", "a"))
    assert table.has_room("b")
    await serve(table, ask("I am b", "b"))
    assert not table.has_room("c")
    assert table.has_room("b")
    table.end_session("a")
    assert table.has_room("c")


async def test_a_turn_waits_for_its_own_slot_while_a_summary_is_written_there() -> None:
    table = new_table(2)
    own = await serve(table, ask("I am a", "a"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(table.acquire(ask("I am a", "a"), background=True))
        was_contended = table.is_contended
        turn = asyncio.create_task(serve(table, ask("I am a, and", "a")))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not turn.done()
        assert (was_contended, table.is_contended) == (False, True)
    assert await turn == own


async def test_sessions_that_begin_alike_do_not_move_each_other_out() -> None:
    """The system prompt that they share is no reason to lose a history."""
    table = new_table(2)
    first = await serve(table, ask("long " * 200, "a"))
    second = await serve(table, ask("word " * 200, "b"))
    assert first != second


async def test_a_stateless_call_takes_no_sessions_slot_if_there_is_another() -> None:
    table = new_table(2)
    session = await serve(table, ask("long " * 200, "a"))
    for text in ("one", "two", "three"):
        assert await serve(table, ask(text)) != session


async def test_when_every_slot_holds_a_session_the_least_recently_used_goes() -> None:
    table = new_table(3)
    slots = {name: await serve(table, ask(f"I am {name}. " * 60, name)) for name in "abc"}
    await serve(table, ask("again " * 60, "a"))
    assert await serve(table, ask("new " * 60, "d", system="x")) == slots["b"]


async def test_the_longest_common_beginning_goes_before_what_was_never_used() -> None:
    table = new_table(3)
    other = await serve(table, ask("?", system="another " * 100))
    first = await serve(table, ask("one"))
    assert first != other
    assert await serve(table, ask("two")) == first
    assert await serve(table, ask("three", system="another " * 100)) == other
    assert await serve(table, ask("four", system="third " * 100)) not in (first, other)


async def test_a_fork_goes_on_in_its_parents_slot_as_nothing_is_lost_by_it() -> None:
    table = new_table(2)
    request = ask("long " * 200, "parent")
    slot = await serve(table, request)
    messages = [*request.messages, Message(Role.ASSISTANT, "yes"), Message(Role.USER, "and?")]
    assert await serve(table, EngineRequest(messages, session_key="child")) == slot


async def test_a_private_request_gets_the_slot_with_the_least_to_lose() -> None:
    table = new_table(3)
    session = await serve(table, ask("short", "a"))
    stateless = await serve(table, ask("long " * 500))
    private = ask("secret", "a", bypass_cache=True)
    assert await serve(table, private) not in (session, stateless)
    assert await serve(table, ask("another", "b", system="x" * 999)) not in (session, stateless)
    table = new_table(1)
    assert await serve(table, private) == 0


async def test_a_busy_slot_is_given_to_nobody_and_who_comes_too_many_waits_in_turn() -> None:
    table = new_table(2)
    order: list[str] = []

    async def turn(name: str) -> None:
        async with table.acquire(ask(name)):
            order.append(name)

    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(table.acquire(ask("x", "s"))) for _ in range(2)]
        assert held[0] is not held[1]
        waiting = [asyncio.create_task(turn(name)) for name in ("first", "second", "third")]
        for slot in held:
            table.answer_began(slot)
        contended = [table.is_contended]
        await asyncio.sleep(0)
        contended.append(table.is_contended)
        assert contended == [False, True], "some wait for a slot"
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        assert order == []
    async with asyncio.timeout(5):
        await asyncio.wait(waiting)
    assert order == ["first", "third"]


async def test_a_slot_is_not_given_on_before_what_is_being_done_to_it_has_ended() -> None:
    table = new_table(1)
    go_on = asyncio.Event()

    async def work() -> None:
        await go_on.wait()

    async def cancelled() -> None:
        async with table.acquire(ask("x")) as slot:
            await asyncio.shield(slot.run_to_end(work()))

    task = asyncio.create_task(cancelled())
    next_one = asyncio.create_task(serve(table, ask("y")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not next_one.done()
    go_on.set()
    async with asyncio.timeout(5):
        assert await next_one == 0
        await table.wait_idle()


async def test_a_session_has_one_slot_at_a_time_though_one_is_being_prepared_for_it() -> None:
    """Or its next turn would find what a step had evaluated instead of what it had itself."""
    table = new_table(3)
    request = ask("imported " * 60, "a")
    began: list[int] = []

    async def turn() -> None:
        async with table.acquire(request) as slot:
            began.append(slot.id)
            slot.set_content(prompt_of(request), "a")

    async with table.acquire(request, background=True) as prepared:
        waiting = asyncio.create_task(turn())
        other = await serve(table, ask("who am I?", "b"))
        assert not began
        prepared.set_content(prompt_of(request), "a")
    await waiting
    assert began == [prepared.id]
    assert other != prepared.id
    assert len(table.unsaved(0.0)) == len("ab")
    async with table.acquire(request):
        assert table.has_turn("a")
        async with table.acquire(request, background=True):
            assert table.has_turn("a"), "and nothing is prepared"
    assert not table.has_turn("a")


async def test_the_next_to_go_is_the_one_unused_for_longest_while_sessions_move() -> None:
    now = Time()
    table = SlotTable(2, now)
    await serve(table, ask("long " * 200, "a"))
    await serve(table, ask("word " * 200, "b"))
    assert table.next_eviction(10.0) is None, "nobody was moved out"
    first = await serve(table, ask("?", "c", system=""))
    now.seconds += 10.0
    found = table.next_eviction(10.0)
    assert found is not None
    assert (found.session_key, found.id) == ("b", 1 - first)
    now.seconds += 0.1
    assert table.next_eviction(10.0) is None, "it was too long ago"
    assert table.next_eviction(20.0) is found
    found.unsaved = False
    assert table.next_eviction(20.0) is None, "it is saved"
    await serve(table, ask("more " * 200, "b"))
    assert table.next_eviction(20.0) is None, "the other is too short to be saved"
    async with table.acquire(ask("on", "b")):
        await serve(table, ask("tale " * 200, "c"))
        assert table.next_eviction(20.0) is None, "it is busy"


async def test_what_has_rested_is_what_nobody_has_used_for_so_long() -> None:
    now = Time()
    table = SlotTable(2, now)
    await serve(table, ask("long " * 200, "a"))
    now.seconds += 3.0
    await serve(table, ask("word " * 200, "b"))
    now.seconds += 2.0
    assert [slot.session_key for slot in table.unsaved(2.0)] == ["a", "b"]
    assert [slot.session_key for slot in table.unsaved(5.0)] == ["a"]
    async with table.acquire(ask("on", "a")):
        assert table.unsaved(5.0) == [], "it is in use"
    assert table.unsaved(5.0) == [], "it was used just now"
    assert table.unsaved(5.1) == []


async def test_a_first_token_and_a_slot_that_is_given_back_are_activity() -> None:
    table = new_table(1)
    async with asyncio.timeout(5):
        async with table.acquire(ask("x", "a")) as slot:
            contended = [table.is_contended]
            table.answer_began(slot)
            await table.activity(1000.0)
            contended.append(table.is_contended)
        await table.activity(1000.0)
    assert contended == [True, False]


async def test_what_nobody_knows_the_end_of_is_not_taken_for_held() -> None:
    slot = Slot(0)
    prompt = prompt_of(ask("x", "a"))
    slot.set_content(prompt, "a")
    slot.evaluation_started("a")
    assert slot.content == prompt, "its own history is still at the beginning"
    slot.evaluation_started("b")
    assert (slot.content, slot.session_key) == (Prompt(), "b")
    slot.clear()
    assert slot.last_use == 0


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (["abc", "def"], ["abc", "def", "x"], 6),
        (["abc", "def"], ["abc", "dex"], 5),
        (["abc", "def"], ["abd", "def"], 2),
        (["abc"], ["x"], 0),
        (["abc"], [], 0),
        (["ab", "x"], ["abc", "x"], 2),
    ],
)
def test_common_is_counted_in_characters_up_to_the_first_difference(
    one: list[str], other: list[str], common: int
) -> None:
    prompts = [Prompt(tuple(Message(Role.USER, text) for text in texts)) for texts in (one, other)]
    assert prompts[0].common(prompts[1]) == prompts[1].common(prompts[0]) == common


def test_other_tools_or_another_role_have_nothing_in_common() -> None:
    messages = (Message(Role.USER, "abc"),)
    assert Prompt(messages).common(Prompt(messages, (Tool("clock"),))) == 0
    assert Prompt(messages).common(Prompt((Message(Role.SYSTEM, "abc"),))) == 0
    assert Prompt((Message(Role.USER, "abc", reasoning="because"),)).common(Prompt(messages)) == 3
