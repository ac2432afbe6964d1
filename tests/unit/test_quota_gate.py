"""Refusals to tenants beyond their quotas leave at a bounded rate, and nobody else's wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from core import Core, settle
from fakes import FrozenClock, done

from ruvd.core.errors import CompletionCancelled, QuotaExceeded
from ruvd.core.ports.events import Event, QuotaRefused
from ruvd.core.tenant_limits import TenantLimits
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.quota_gate import QuotaGate

COMPLETE = "/ruvd.v1.SessionService/Complete"
BATCH = "/ruvd.v1.SessionService/BatchComplete"
ERROR = QuotaExceeded("too many", quota="max_inflight")


@dataclass
class Gate:
    """A gate of tenants that may have one completion, by a clock that moves only as told."""

    clock: FrozenClock = field(default_factory=FrozenClock)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = Core(clock=self.clock, limits_of=lambda _: TenantLimits(max_inflight=1))
        self.gate = QuotaGate(
            self.core.completions.quotas,
            self.events.append,
            monotonic=self.clock.monotonic,
            sleep=self.sleep,
        )
        self.left: list[str] = []

    async def sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        self.clock.call_later(seconds, over.set)
        await over.wait()

    async def refuse(self, tenant: str, *, at_once: bool = False) -> None:
        caller.current.set(Identity(tenant))
        await self.gate.refuse(ERROR, at_once=at_once)
        self.left.append(tenant)

    def flood(self, tenant: str, count: int, *, at_once: bool = False) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.refuse(tenant, at_once=at_once)) for _ in range(count)]

    def is_refused_early(self, tenant: str, method: str = COMPLETE, receiving: int = 0) -> bool:
        caller.current.set(Identity(tenant))
        try:
            self.gate.check(method, receiving)
        except QuotaExceeded:
            return True
        return False


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def test_the_refusals_of_a_flood_leave_at_a_bounded_rate_and_others_at_once(
    gate: Gate,
) -> None:
    flood = gate.flood("ann", 200)
    await settle()
    assert gate.left.count("ann") == pytest.approx(50, abs=1)
    await asyncio.gather(*gate.flood("bob", 10))
    for _ in range(10):
        gate.clock.advance(0.1)
        await settle()
    assert gate.left.count("ann") == pytest.approx(101, abs=1)
    while not all(each.done() for each in flood):
        gate.clock.advance(1)
        await settle()
    gate.clock.advance(60)
    assert gate.events == [QuotaRefused("max_inflight")] * 210
    await asyncio.gather(*gate.flood("ann", 50))  # it has not been refused for a while


async def test_a_bounded_number_of_refusals_waits(gate: Gate) -> None:
    flood = gate.flood("ann", 3000)
    await settle()
    assert sum(not each.done() for each in flood) == 1500
    others = [each for name in ("bob", "cid", "dan") for each in gate.flood(name, 1500)]
    await settle()
    waiting = [each for each in (*flood, *others) if not each.done()]
    assert len(waiting) == 2000
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    gate.gate.limit_memory(20 << 20)
    gate.clock.advance(60)
    flood = gate.flood("ann", 200)
    await settle()
    assert sum(not each.done() for each in flood) == 78  # three quarters of 3 MiB, 30 kB each
    for each in flood:
        each.cancel()


async def test_refusals_of_calls_that_have_gone_hold_up_no_others(gate: Gate) -> None:
    flood = gate.flood("ann", 900)
    await settle()
    for each in flood:
        each.cancel()
    await asyncio.wait(flood)
    again = gate.flood("ann", 100)
    for _ in range(21):
        gate.clock.advance(0.1)
        await settle()
    assert all(each.done() for each in again), "at 50 a second"


async def test_a_call_beyond_the_quota_is_refused_early_only_in_a_flood(gate: Gate) -> None:
    opened = asyncio.Event()
    gate.core.engine.scripts = [[opened, done()]]
    running = gate.core.start("hi", "", tenant="ann")
    assert not gate.is_refused_early("ann"), "it may repeat the request that runs"
    flood = gate.flood("ann", 60)
    await settle()
    assert gate.is_refused_early("ann")
    assert not gate.is_refused_early("ann", BATCH), "its items would wait"
    assert not gate.is_refused_early("ann", "/ruvd.v1.SessionService/ResumeCompletion")
    assert not gate.is_refused_early("bob")
    with gate.core.completions.quotas.batch_call("ann"):
        assert gate.is_refused_early("ann", BATCH)
    opened.set()
    await running.ended()
    await settle()
    assert not gate.is_refused_early("ann"), "there is room again"
    assert gate.is_refused_early("ann", receiving=1), "the room is for the one that comes first"
    assert not gate.is_refused_early("bob", receiving=1)
    for each in flood:
        each.cancel()


async def test_large_refused_requests_are_not_kept_and_still_make_a_flood(gate: Gate) -> None:
    gate.core.engine.scripts = [[asyncio.Event()]]
    running = gate.core.start("hi", "", tenant="ann")
    await asyncio.gather(*gate.flood("ann", 100, at_once=True))
    assert gate.is_refused_early("ann")
    running.cancel(CompletionCancelled("enough"))


async def test_a_bounded_number_of_tenants_is_remembered(gate: Gate) -> None:
    for number in range(5000):
        await gate.refuse(f"t{number}")
        gate.clock.advance(0.01)
    assert len(gate.gate._tenants) <= 1000  # shows nowhere else
