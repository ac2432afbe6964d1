"""The slots of tenants: by weight, to whoever wants them, and nobody starves."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Sequence

import pytest
from core import settle
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvd.core.completions.fair_queue import FairQueue
from ruvd.core.completions.scheduler import SlotScheduler

NAMES = ("ann", "bob", "cid", "dan")
WEIGHTS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 8.0]), min_size=4, max_size=4)


class Queue:
    """A fair queue of tenants with these weights, and who holds its slots, oldest first."""

    def __init__(self, slots: int, weights: Sequence[float]) -> None:
        self.weights = dict(zip(NAMES, weights, strict=False))
        self.slots = slots
        self.queue = FairQueue(self.weights.__getitem__)
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {name: deque() for name in NAMES}
        self.holders: deque[str] = deque()
        self.given: Counter[str] = Counter()

    def want(self, tenant: str, count: int = 1) -> None:
        for _ in range(count):
            waiter = asyncio.get_running_loop().create_future()
            self.waiting[tenant].append(waiter)
            self.queue.push(tenant, waiter)

    def give(self) -> str:
        """Gives the next slot, and returns its tenant; nothing if nobody waits."""
        waiter = self.queue.pop(self.slots)
        if waiter is None:
            return ""
        (tenant,) = (name for name, own in self.waiting.items() if own and own[0] is waiter)
        self.waiting[tenant].popleft()
        self.holders.append(tenant)
        self.given[tenant] += 1
        return tenant

    def end(self, index: int = 0) -> None:
        tenant = self.holders[index]
        del self.holders[index]
        self.queue.release(tenant)

    def wanting(self) -> list[str]:
        return [name for name, own in self.waiting.items() if own]

    def share(self, tenant: str) -> int:
        active = sum(self.weights[name] for name in {*self.wanting(), *self.holders})
        return math.ceil(self.slots * self.weights[tenant] / active - 1e-9)


@given(slots=st.integers(1, 6), weights=WEIGHTS)
async def test_tenants_that_want_more_get_slots_by_weight(slots: int, weights: list[float]) -> None:
    queue = Queue(slots, weights)
    for name in NAMES:
        queue.want(name, 400)
    rounds = 300
    for number in range(rounds):
        assert queue.give()
        if number + 1 >= slots:
            queue.end()  # they all take equally long
    for name in NAMES:
        fair = rounds * queue.weights[name] / sum(queue.weights.values())
        assert abs(queue.given[name] - fair) <= len(NAMES) + slots


@given(
    slots=st.integers(1, 5),
    weights=WEIGHTS,
    steps=st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(1, 3), st.booleans(), st.integers(0, 9)),
        max_size=60,
    ),
)
async def test_in_any_order_slots_go_to_those_below_their_share_and_nobody_starves(
    slots: int, weights: list[float], steps: list[tuple[str, int, bool, int]]
) -> None:
    queue = Queue(slots, weights)
    missed: Counter[str] = Counter()  # the slots that went to others since a tenant wants one
    for tenant, count, ends, pick in steps:
        queue.want(tenant, count)
        if ends and queue.holders:
            queue.end(pick % len(queue.holders))
        while len(queue.holders) < slots:
            held, wanting = Counter(queue.holders), queue.wanting()
            shares = {name: queue.share(name) for name in wanting}
            given_to = queue.give()
            assert bool(given_to) == bool(wanting), "a slot is free and somebody wants it"
            if not given_to:
                break
            if held[given_to] >= shares[given_to]:
                assert all(held[name] >= shares[name] for name in wanting)
            missed[given_to] = 0
            for name in wanting:
                if name == given_to or held[name]:
                    continue
                missed[name] += 1
                most = sum(queue.weights[other] / queue.weights[name] + 2 for other in NAMES)
                assert missed[name] <= most


async def test_a_tenant_alone_gets_every_slot_and_gives_way_to_the_next() -> None:
    queue = Queue(4, [1, 1, 1, 1])
    queue.want("ann", 100)
    assert [queue.give() for _ in range(4)] == ["ann"] * 4
    queue.want("bob", 2)
    for _ in range(3):
        queue.end()
        queue.give()
    assert list(queue.holders) == ["ann", "bob", "bob", "ann"]


async def test_longer_answers_get_no_more_than_the_share() -> None:
    queue = Queue(4, [1, 1])
    queue.want("ann", 100)  # whose answers never end
    queue.want("bob", 100)
    for _ in range(50):
        while len(queue.holders) < 4:
            queue.give()
        queue.end(queue.holders.index("bob"))
    assert queue.holders.count("ann") == 2
    assert queue.given["bob"] >= 48


async def test_nobody_saves_up_slots_while_others_work() -> None:
    queue = Queue(1, [1, 1])
    queue.want("bob")
    queue.give()
    queue.want("ann", 40)
    for _ in range(20):
        queue.end()
        queue.give()
    queue.want("bob", 20)
    later = []
    for _ in range(10):
        queue.end()
        later.append(queue.give())
    assert later.count("ann") == later.count("bob") == 5


async def test_a_queue_forgets_the_tenants_that_have_gone() -> None:
    queue = FairQueue(lambda _: 0.001)
    loop = asyncio.get_running_loop()
    queue.push("first", loop.create_future())
    queue.pop(1)
    for number in range(3000):
        waiter = loop.create_future()
        queue.push(f"t{number}", waiter)
        if number % 2:
            waiter.cancel()
        if number % 4 == 3:
            queue.remove(f"t{number}", waiter)
        elif queue.pop(1):
            queue.release(f"t{number}")
    assert len(queue._tenants) < 1100  # shows nowhere else
    assert len(queue) <= 1


@settings(max_examples=150, deadline=None)
@given(
    total=st.integers(1, 4),
    share=st.floats(0.1, 1.0),
    weights=WEIGHTS,
    steps=st.lists(
        st.tuples(
            st.sampled_from(["chat", "batch", "leave", "cancel"]),
            st.sampled_from(NAMES),
            st.integers(0, 30),
        ),
        max_size=40,
    ),
)
async def test_whatever_comes_no_slot_is_idle_while_one_is_wanted(
    total: int, share: float, weights: list[float], steps: list[tuple[str, str, int]]
) -> None:
    by_name = dict(zip(NAMES, weights, strict=True))
    slots = SlotScheduler(total, share, by_name.__getitem__)
    most_batch = max(1, int(total * share))
    tasks: dict[asyncio.Task[None], tuple[bool, asyncio.Event]] = {}
    inside: dict[asyncio.Task[None] | None, bool] = {}
    made: list[asyncio.Task[None]] = []  # also those that were told to leave while they waited

    async def stay(tenant: str, leave: asyncio.Event, *, batch: bool) -> None:
        async with slots.take(batch=batch, tenant=tenant):
            task = asyncio.current_task()
            inside[task] = batch
            try:
                await leave.wait()
            finally:
                del inside[task]

    for step, tenant, pick in steps:
        if step in ("chat", "batch"):
            leave, batch = asyncio.Event(), step == "batch"
            task = asyncio.create_task(stay(tenant, leave, batch=batch))
            tasks[task] = batch, leave
            made.append(task)
        elif tasks:
            task = list(tasks)[pick % len(tasks)]
            _, leave = tasks.pop(task)
            leave.set() if step == "leave" else task.cancel()
        await settle()
        batches = sum(inside.values())
        assert len(inside) <= total
        assert batches <= most_batch
        waiting = [batch for task, (batch, _) in tasks.items() if task not in inside]
        if len(inside) < total:
            assert all(waiting), "a slot is free and an interactive completion waits"
            assert not waiting or batches == most_batch
    for _, leave in tasks.values():
        leave.set()
    if made:
        _, late = await asyncio.wait(made, timeout=60)
        assert not late
    assert slots.waiting == (0, 0)


@pytest.mark.parametrize("batch", [False, True])
async def test_a_flood_of_one_tenant_does_not_go_before_anothers_next_turn(*, batch: bool) -> None:
    slots = SlotScheduler(2, 1.0)
    order: list[str] = []

    async def turn(tenant: str) -> None:
        async with slots.take(batch=batch, tenant=tenant):
            order.append(tenant)
            await asyncio.sleep(0)

    flood = [asyncio.create_task(turn("ann")) for _ in range(100)]
    await asyncio.sleep(0)
    other = [asyncio.create_task(turn("bob")) for _ in range(3)]
    await asyncio.gather(*flood, *other)
    assert order[:12].count("bob") == 3
