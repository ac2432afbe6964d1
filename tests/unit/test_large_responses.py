"""LargeResponses admits a few large responses, and refuses more once their readers are stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from core import settle

from ruvd.core.errors import Overloaded
from ruvd.core.ports.memory import UnlimitedMemory
from ruvd.rpc.large_responses import SMALL_BYTES, LargeResponses

LARGE = SMALL_BYTES + 1


class Call:
    """A call that ends when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        for callback in self.callbacks:
            callback(self)


async def test_a_response_waits_for_room_until_another_one_has_been_read() -> None:
    responses = LargeResponses(UnlimitedMemory(), max_bytes=2 * LARGE, stall_seconds=60)
    first, second = Call(), Call()
    await responses.hold(LARGE, first)
    await responses.hold(LARGE, second)
    third = asyncio.create_task(responses.hold(LARGE, Call()))
    await settle()
    assert not third.done()
    first.end()
    await third


async def test_without_progress_a_response_is_refused_and_its_place_is_free() -> None:
    responses = LargeResponses(UnlimitedMemory(), max_bytes=LARGE, stall_seconds=0.05)
    stuck = Call()
    await responses.hold(LARGE, stuck)
    with pytest.raises(Overloaded):
        await responses.hold(LARGE, Call())
    with pytest.raises(Overloaded):  # at once
        await asyncio.wait_for(responses.hold(LARGE, Call()), 0.04)
    stuck.end()
    await responses.hold(LARGE, Call())


async def test_small_responses_need_no_room() -> None:
    responses = LargeResponses(UnlimitedMemory(), max_bytes=0, stall_seconds=60)
    await responses.hold(SMALL_BYTES, Call())


@pytest.mark.parametrize("admitted", [False, True])
async def test_a_caller_that_leaves_while_it_waits_takes_no_room(admitted: bool) -> None:  # noqa: FBT001
    responses = LargeResponses(UnlimitedMemory(), max_bytes=LARGE, stall_seconds=60)
    first = Call()
    await responses.hold(LARGE, first)
    waiting = asyncio.create_task(responses.hold(LARGE, Call()))
    await settle()
    if admitted:
        first.end()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not admitted:
        first.end()
    await asyncio.wait_for(responses.hold(LARGE, Call()), 5)


async def test_those_who_wait_behind_a_caller_that_leaves_move_up() -> None:
    responses = LargeResponses(UnlimitedMemory(), max_bytes=3 * LARGE, stall_seconds=60)
    await responses.hold(2 * LARGE, Call())
    waiting = asyncio.create_task(responses.hold(2 * LARGE, Call()))
    await settle()
    behind = asyncio.create_task(responses.hold(LARGE, Call()))
    await settle()
    assert not behind.done()
    waiting.cancel()
    await behind


async def test_a_few_responses_are_built_at_a_time_and_few_may_wait() -> None:
    responses = LargeResponses(UnlimitedMemory(), max_building=1, max_waiting=2)
    go_on = asyncio.Event()

    async def build() -> None:
        async with responses.build():
            await go_on.wait()

    tasks = [asyncio.create_task(build()) for _ in range(3)]
    await settle()
    with pytest.raises(Overloaded):
        await build()
    go_on.set()
    await asyncio.gather(*tasks)
    await build()


async def test_a_response_for_which_there_is_no_memory_is_refused_and_holds_nothing() -> None:
    memory = FullMemory()
    responses = LargeResponses(memory, max_building=1)
    for _ in range(3):
        with pytest.raises(Overloaded):
            async with responses.build(LARGE):
                pass
    async with responses.build():  # of unknown size
        pass
    memory.left = LARGE
    for _ in range(3):
        async with responses.build(LARGE):
            assert memory.left == 0
    assert memory.left == LARGE


class FullMemory:
    """Memory for `left` more bytes."""

    left = 0

    def try_reserve(self, size_bytes: int) -> bool:
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self.left += size_bytes
