"""The memory budget: work is refused, then failed, before the memory is used up."""

from __future__ import annotations

import asyncio

import pytest
from core import Core, failed, settle
from fakes import FrozenClock
from virtual_time import in_virtual_time

from ruvd.core.errors import Overloaded, QuotaExceeded
from ruvd.core.ports.engine import EngineText
from ruvd.server.memory_budget import MemoryBudget, resident_bytes

LIMIT = 1000


class Watched:
    """A budget whose resident memory is what the test says."""

    def __init__(self) -> None:
        self.resident = 0
        self.shed = 0
        self.changes: list[bool] = []
        self.clock = FrozenClock()
        self.returns = 0
        self.budget = MemoryBudget(
            LIMIT,
            max_request_bytes=10,
            shed=self.fail_some,
            on_change=self.changes.append,
            resident=lambda: self.resident,
            return_memory=self.count_return,
            monotonic=self.clock.monotonic,
        )

    def count_return(self) -> None:
        self.returns += 1

    def fail_some(self) -> bool:
        self.shed += 1
        return True

    def at(self, resident: int) -> MemoryBudget:
        self.resident = resident
        self.budget.look()
        return self.budget


def test_calls_are_refused_near_the_limit_until_there_is_memory_again() -> None:
    watched = Watched()
    watched.at(900).check()
    with pytest.raises(Overloaded) as caught:
        watched.at(901).check()
    assert caught.value.retry_after_seconds
    with pytest.raises(Overloaded):
        watched.at(851).check()
    watched.at(850).check()
    assert watched.changes == [True, False]
    assert watched.shed == 0


def test_running_work_is_failed_only_where_the_memory_is_all_but_used_up() -> None:
    watched = Watched()
    watched.at(950)
    assert watched.shed == 0
    watched.at(951)
    watched.at(951)
    assert watched.shed == 2


def test_free_memory_is_returned_near_the_limit_but_not_at_every_look() -> None:
    """It takes a collection of all garbage, which stalls the event loop."""
    watched = Watched()
    watched.at(900)
    assert watched.returns == 0
    for _ in range(10):
        watched.at(940)
    assert watched.returns == 1
    watched.clock.advance(5)
    watched.at(940)
    assert watched.returns == 2


def test_free_memory_is_returned_until_calls_are_admitted_again() -> None:
    """Between the two shares nothing else would return it: calls were refused for ever."""
    watched = Watched()
    watched.at(940)
    watched.clock.advance(5)
    watched.at(880)
    assert watched.returns == 2
    watched.at(850).check()
    watched.clock.advance(5)
    watched.at(880).check()
    assert watched.returns == 2


def test_large_requests_reserve_memory_before_it_is_used() -> None:
    budget = Watched().at(400)
    with budget.reserve(50):
        with pytest.raises(Overloaded), budget.reserve(50):
            pass
        with budget.reserve(5):
            pass
    with budget.reserve(50):
        pass


def test_a_growing_answer_reserves_memory_as_long_as_there_is_some() -> None:
    budget = Watched().at(500)
    assert budget.try_reserve(60)
    assert not budget.try_reserve(60)
    budget.release(60)
    assert budget.try_reserve(60)
    with pytest.raises(Overloaded), budget.reserve(10):
        pass


def test_large_things_are_refused_while_small_calls_are_served() -> None:
    budget = Watched().at(800)
    assert not budget.try_reserve(1)
    with pytest.raises(Overloaded), budget.reserve(1):
        pass
    budget.check()


def test_an_answer_does_not_grow_while_the_memory_is_tight() -> None:
    watched = Watched()
    budget = watched.at(910)
    watched.resident = 500
    assert not budget.try_reserve(1)
    budget.look()
    assert budget.try_reserve(1)


def test_free_memory_is_returned_before_a_large_request_is_refused() -> None:
    """Otherwise large requests were refused for ever while the memory is not tight."""
    watched = Watched()
    budget = watched.at(800)
    for returns in (1, 1):
        with pytest.raises(Overloaded), budget.reserve(50):
            pass
        assert watched.returns == returns
    watched.clock.advance(5)
    with pytest.raises(Overloaded), budget.reserve(50):
        pass
    assert watched.returns == 2


def test_a_reservation_that_is_given_back_early_is_given_back_once() -> None:
    budget = Watched().at(400)
    with budget.reserve(50) as release:
        release()
        release()
        with budget.reserve(50), pytest.raises(Overloaded), budget.reserve(50):
            pass
    with budget.reserve(50), pytest.raises(Overloaded), budget.reserve(50):
        pass


async def test_the_completions_that_hold_the_most_are_failed_first() -> None:
    core = Core()
    gate = asyncio.Event()
    core.engine.scripts = [[EngineText("x" * size), gate] for size in (10, 5000, 20)]
    small, large, medium = (core.start("hi", name) for name in ("a", "b", "c"))
    await settle()
    assert core.completions.shed()
    events = await failed(large, Overloaded)
    assert events
    assert small.can_be_cancelled
    assert medium.can_be_cancelled
    await core.completions.drain(0)
    assert not core.completions.shed()


def test_the_resident_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    held = bytearray(b"x" * (64 << 20))
    assert 60 << 20 < resident_bytes() - before < 200 << 20
    del held


@in_virtual_time
async def test_few_requests_are_received_at_a_time_and_a_slow_one_delays_others_for_a_second() -> (
    None
):
    budget = Watched().at(0)
    receiving = [await budget.receive() for _ in range(10)]  # a tenth of the limit, 10 bytes each
    waiting = asyncio.create_task(budget.receive())
    await settle()
    assert not waiting.done()
    receiving[0].end()
    await settle()
    assert waiting.done()
    late = asyncio.create_task(budget.receive())
    await settle()
    assert not late.done()
    await asyncio.sleep(1.1)
    assert late.done()


@in_virtual_time
async def test_slow_requests_of_a_tenant_leave_half_of_the_room_to_others() -> None:
    budget = Watched().at(0)
    slow = [asyncio.create_task(budget.receive("ann")) for _ in range(50)]
    await settle()
    receiving = [each.result() for each in slow if each.done()]
    assert len(receiving) == budget.receiving("ann") == 5
    async with asyncio.timeout(0.5):
        others = [await budget.receive(name) for name in ("bob", "cid", "", "bob", "")]
    receiving[0].end()
    await settle()
    assert sum(each.done() for each in slow) == 6
    done, late = await asyncio.wait(slow, timeout=2)
    assert not late
    assert len([each for each in done if isinstance(each.exception(), QuotaExceeded)]) == 44
    assert len(others) == 5


async def test_a_tenant_whose_calls_have_gone_may_send_again() -> None:
    budget = Watched().at(0)
    receiving = [await budget.receive("ann") for _ in range(5)]
    del receiving
    async with asyncio.timeout(60):
        assert len([await budget.receive("ann") for _ in range(5)]) == 5


async def test_a_request_whose_call_has_gone_is_not_counted_any_more() -> None:
    budget = Watched().at(0)
    receiving = [await budget.receive() for _ in range(10)]
    del receiving
    async with asyncio.timeout(0.5):
        for _ in range(10):
            await budget.receive()


async def test_near_the_limit_no_request_is_received() -> None:
    with pytest.raises(Overloaded):
        await Watched().at(910).receive()
