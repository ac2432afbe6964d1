"""The engine's places: never more than there are, interactive first, nobody forgotten."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from core import settle
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvd.core.completions.scheduler import SlotScheduler


class Places:
    """Takes and gives places as told, and counts who has one."""

    def __init__(self, total: int | None, share: float) -> None:
        self.scheduler = SlotScheduler(total, share)
        self.tasks: dict[int, tuple[bool, asyncio.Task[None], asyncio.Event]] = {}
        self.inside: dict[int, bool] = {}

    def take(self, number: int, *, batch: bool) -> None:
        leave = asyncio.Event()

        async def stay() -> None:
            async with self.scheduler.take(batch=batch):
                self.inside[number] = batch
                try:
                    await leave.wait()
                finally:
                    del self.inside[number]

        self.tasks[number] = (batch, asyncio.create_task(stay()), leave)


@settings(max_examples=150, deadline=None)
@given(
    total=st.integers(1, 4),
    share=st.floats(0.1, 1.0),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["chat", "batch", "leave", "cancel", "rest"]), st.integers(0, 30)
        ),
        max_size=40,
    ),
)
async def test_whatever_comes_places_are_kept_and_nobody_is_forgotten(
    total: int, share: float, steps: list[tuple[str, int]]
) -> None:
    places = Places(total, share)
    most_batch = max(1, int(total * share))
    for number, (step, pick) in enumerate(steps):
        if step in ("chat", "batch"):
            places.take(number, batch=step == "batch")
        elif step == "rest":
            await settle()
            chats_wait = sum(not batch for batch, _, _ in places.tasks.values()) - sum(
                not batch for batch in places.inside.values()
            )
            assert not (chats_wait and len(places.inside) < total), (
                "a place is free and a chat waits"
            )
        elif places.tasks:
            chosen = sorted(places.tasks)[pick % len(places.tasks)]
            _, task, leave = places.tasks.pop(chosen)
            leave.set() if step == "leave" else task.cancel()
        await asyncio.sleep(0)
        assert len(places.inside) <= total
        assert sum(places.inside.values()) <= most_batch
    for _, _, leave in places.tasks.values():
        leave.set()
    await asyncio.wait_for(
        asyncio.gather(*(task for _, task, _ in places.tasks.values()), return_exceptions=True), 5
    )
    async with AsyncExitStack() as stack:  # all of them are free again
        for _ in range(total):
            await asyncio.wait_for(stack.enter_async_context(places.scheduler.take()), 1)


async def test_without_a_bound_everybody_goes_at_once_until_the_engine_asks_to_slow_down() -> None:
    places = Places(None, 0.5)
    for number in range(20):
        places.take(number, batch=True)
    await settle()
    assert len(places.inside) == 20
    places.scheduler.narrow(0)
    places.scheduler.narrow(0)  # the second of those that ran side by side
    for number in range(20, 30):
        places.take(number, batch=True)
    for number in range(11):
        places.tasks[number][2].set()
    await settle()
    assert len(places.inside) == 10  # half of 21
    places.take(99, batch=False)
    await settle()
    assert 99 in places.inside
    for _ in range(12):
        places.scheduler.widen()
    await settle()
    assert sum(places.inside.values()) == 11
    for _, task, _ in places.tasks.values():
        task.cancel()
    await settle()


@pytest.mark.parametrize("refusals", [1, 5, 50])
async def test_the_bound_never_falls_below_one(refusals: int) -> None:
    slots = SlotScheduler(4, 1.0)
    for _ in range(refusals):
        slots.narrow(slots.narrowings)
    async with asyncio.timeout(1), slots.take(batch=True):
        pass


async def test_a_spare_place_is_for_when_nobody_has_or_wants_one() -> None:
    slots = SlotScheduler(2, 0.5)
    order: list[str] = []

    async def spare() -> None:
        async with slots.take_spare():
            order.append("spare")

    async def take(name: str, *, batch: bool) -> None:
        async with slots.take(batch=batch):
            order.append(name)
            await settle()

    async with slots.take(batch=True):
        tasks = [asyncio.create_task(spare()), asyncio.create_task(spare())]
        await settle()
        tasks += [
            asyncio.create_task(take("chat", batch=False)),
            asyncio.create_task(take("batch", batch=True)),
        ]
        await settle()
        assert order == ["chat"], "another place is free, and yet the spare ones wait"
        tasks[0].cancel()
    await asyncio.wait(tasks)
    assert order == ["chat", "batch", "spare"]


async def test_a_caller_takes_the_other_place_beside_a_spare_one() -> None:
    slots = SlotScheduler(2, 0.5)
    async with asyncio.timeout(5), slots.take_spare(), slots.take():
        assert slots.waiting == (0, 0)
