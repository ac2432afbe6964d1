"""The quotas of tenants for completions: refused beyond them, and nobody else is affected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from core import Core, collect, settle
from fakes import ScriptedEngine, done
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvd.core.completions.batch import Batches, BatchOutcome, BatchSummary
from ruvd.core.completions.completion import Completion, CompletionRequest
from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.errors import (
    CompletionCancelled,
    EngineUnavailable,
    QuotaExceeded,
    RuvdError,
)
from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineChunk, EngineRequest, EngineText
from ruvd.core.tenant_limits import UNLIMITED, TenantLimits
from ruvd.core.tenants import scoped


def limited(**limits: int) -> Core:
    """A core in which the tenant ann has these limits, and others have none."""
    anns = TenantLimits(**limits)  # type: ignore[arg-type]
    return Core(limits_of=lambda tenant: anns if tenant == "ann" else UNLIMITED)


def begin(core: Core, tenant: str = "ann", text: str = "hi", **fields: object) -> Completion:
    return core.start(text, "", tenant=tenant, **fields)


def gate(core: Core, count: int = 1) -> asyncio.Event:
    """Lets the next generations end with the event that is returned."""
    opened = asyncio.Event()
    core.engine.scripts += [[EngineText("so far"), opened, done()] for _ in range(count)]
    return opened


def refused(core: Core, **fields: object) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as error:
        begin(core, **fields)  # type: ignore[arg-type]
    return error.value


# --- completions that run or wait --------------------------------------------------------------


async def test_a_tenant_beyond_max_inflight_is_refused_and_others_are_not() -> None:
    core = limited(max_inflight=2)
    opened = gate(core, 2)
    running = [begin(core), begin(core)]
    error = refused(core)
    assert (error.quota, error.retry_after_seconds) == ("max_inflight", 1.0)
    await collect(begin(core, "bob"))
    await collect(begin(core, "default"))
    opened.set()
    await asyncio.gather(*map(collect, running))
    await collect(begin(core))


async def test_turns_that_wait_for_their_session_count() -> None:
    core = limited(max_inflight=3)
    opened = gate(core)
    session = scoped("ann", "s")
    turns = [core.start("hi", session, tenant="ann") for _ in range(3)]
    await settle()
    assert refused(core).quota == "max_inflight"
    opened.set()
    await asyncio.gather(*map(collect, turns))
    await collect(begin(core))


async def test_a_repeated_request_joins_its_completion_beyond_the_quota() -> None:
    core = limited(max_inflight=1)
    opened = gate(core)
    first = begin(core, request_id="r")
    assert begin(core, request_id="r") is first
    assert refused(core, request_id="other").quota == "max_inflight"
    opened.set()
    await collect(first)


@pytest.mark.parametrize("error", [EngineUnavailable("gone"), RuntimeError("a bug")])
async def test_a_completion_that_fails_frees_its_place(error: Exception) -> None:
    core = limited(max_inflight=1)
    for _ in range(3):
        core.engine.scripts = [[error]]
        with pytest.raises(type(error)):
            await collect(begin(core))
    await collect(begin(core))


async def test_a_cancelled_completion_frees_its_place() -> None:
    core = limited(max_inflight=1)
    gate(core)
    completion = begin(core)
    await settle()
    completion.cancel(CompletionCancelled("enough"))
    await completion.ended()
    await settle()
    await collect(begin(core))


# --- tokens a minute ---------------------------------------------------------------------------


def usage(core: Core, prompt: int, cached: int | None, completion: int) -> None:
    core.engine.scripts.append([EngineText("x"), done(prompt, cached, completion)])


async def test_a_tenant_in_debt_is_told_when_it_has_credit_again() -> None:
    core = limited(tokens_per_minute=600)
    usage(core, 900, 0, 300)
    await collect(begin(core))
    error = refused(core)
    assert error.quota == "tokens_per_minute"
    assert error.retry_after_seconds == pytest.approx(60.1)  # 600 tokens of debt, and one more
    await collect(begin(core, "bob"))
    core.clock.advance(error.retry_after_seconds - 0.2)
    assert refused(core).retry_after_seconds == pytest.approx(0.2)
    core.clock.advance(0.2)
    usage(core, 1, 0, 0)
    await collect(begin(core))


async def test_what_is_not_used_in_a_minute_is_a_burst_and_no_more_than_that() -> None:
    core = limited(tokens_per_minute=600)
    core.clock.advance(3600)
    usage(core, 599, 0, 0)
    await collect(begin(core))
    usage(core, 1, 0, 0)
    await collect(begin(core))
    assert refused(core).quota == "tokens_per_minute"


async def test_cached_prompt_tokens_do_not_count() -> None:
    core = limited(tokens_per_minute=100)
    for _ in range(9):
        usage(core, 1000, 995, 5)
        await collect(begin(core))
    usage(core, 1000, None, 5)  # the engine does not say how many were cached
    await collect(begin(core))
    assert refused(core).quota == "tokens_per_minute"


async def test_an_answer_that_is_cancelled_before_its_usage_counts_by_its_size() -> None:
    core = limited(tokens_per_minute=100)
    core.engine.scripts = [[EngineText("y" * 200), asyncio.Event()]]
    completion = begin(core, text="z" * 240)
    await settle()
    completion.cancel(CompletionCancelled("enough"))
    await completion.ended()
    await settle()
    error = refused(core)
    assert error.retry_after_seconds == pytest.approx((110 - 100 + 1) * 0.6)


async def test_a_prompt_that_is_cancelled_before_the_first_token_counts() -> None:
    core = limited(tokens_per_minute=100)
    core.engine.scripts = [[asyncio.Event()]]
    completion = begin(core, text="z" * 400)
    await settle()
    completion.cancel(CompletionCancelled("enough"))
    await completion.ended()
    await settle()
    assert refused(core).quota == "tokens_per_minute"


async def test_a_prompt_that_the_engine_refuses_counts_nothing() -> None:
    core = limited(tokens_per_minute=10)
    for _ in range(3):
        core.engine.scripts = [[EngineUnavailable("gone")]]
        with pytest.raises(EngineUnavailable):
            await collect(begin(core, text="z" * 4000))
    await collect(begin(core))


async def test_a_server_that_reports_no_usage_is_counted_by_size() -> None:
    core = limited(tokens_per_minute=10)
    unreported = done()
    core.engine.scripts = [[EngineText("y" * 100), type(unreported)(unreported.finish_reason)]]
    await collect(begin(core))
    assert refused(core).quota == "tokens_per_minute"


@given(
    uses=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 400)), min_size=1, max_size=30),
    rate=st.sampled_from([1, 60, 1000]),
)
def test_over_any_time_a_tenant_gets_its_rate_and_one_burst(
    uses: list[tuple[float, int]], rate: int
) -> None:
    core = limited(tokens_per_minute=rate)
    quotas = core.completions.quotas
    began, spent = core.clock.time, 0
    for seconds, tokens in uses:
        core.clock.advance(seconds)
        try:
            quotas.check("ann")
        except QuotaExceeded as error:
            core.clock.advance((error.retry_after_seconds or 0.0) + 1e-6)
            quotas.check("ann")
        minutes = (core.clock.time - began) / 60
        assert spent <= rate * (minutes + 1), "before this one, all was within the rate"
        quotas.begin("ann", batch=False)
        quotas.end("ann", batch=False, tokens=lambda count=tokens: count)  # type: ignore[misc]
        spent += tokens


def test_the_used_tokens_of_a_bounded_number_of_tenants_are_remembered() -> None:
    core = Core()
    quotas = TenantQuotas(lambda _: TenantLimits(tokens_per_minute=1), core.clock, 0.5)
    for number in range(10_001):
        quotas.begin(f"t{number}", batch=False)
        quotas.end(f"t{number}", batch=False, tokens=lambda: 5)
    quotas.check("t0")  # forgotten
    with pytest.raises(QuotaExceeded):
        quotas.check("t1")


# --- batches -----------------------------------------------------------------------------------


async def batch(
    core: Core, count: int, concurrency: int = 0, text: str = "hi", **fields: str
) -> list[BatchOutcome | BatchSummary]:
    async def sleep(seconds: float) -> None:
        core.clock.advance(seconds)
        await asyncio.sleep(0)

    messages = (Message(Role.USER, text),)
    given: dict[str, Any] = {"tenant": "ann", **fields}
    items: list[CompletionRequest | RuvdError] = [
        CompletionRequest(messages, **given) for _ in range(count)
    ]
    batches = Batches(core.completions, core.clock, 32, sleep=sleep)
    return [event async for event in batches.run(items, concurrency)]


def summary(events: list[BatchOutcome | BatchSummary]) -> tuple[int, int]:
    last = events[-1]
    assert isinstance(last, BatchSummary)
    return last.succeeded, last.failed


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (4, 2), (9, 4)])
async def test_items_of_a_batch_wait_and_leave_room_for_others(most: int, at_once: int) -> None:
    core = limited(max_inflight=most)
    opened = gate(core, 30)
    running = asyncio.create_task(batch(core, 30))
    await settle()
    assert core.engine.running == at_once
    opened.set()
    assert summary(await running) == (30, 0)
    assert core.engine.most_running == at_once


async def test_two_batches_of_a_tenant_share_its_quota_and_both_end() -> None:
    core = limited(max_inflight=2)
    ends = await asyncio.gather(batch(core, 10), batch(core, 10), batch(core, 10, tenant="bob"))
    assert [summary(each) for each in ends] == [(10, 0)] * 3


async def test_an_interactive_completion_finds_room_beside_a_batch() -> None:
    core = limited(max_inflight=2)
    opened = gate(core)
    running = asyncio.create_task(batch(core, 10))
    await settle()
    await collect(begin(core))
    opened.set()
    assert summary(await running) == (10, 0)


async def test_items_wait_while_interactive_completions_use_the_quota() -> None:
    core = limited(max_inflight=1)
    opened = gate(core)
    first = begin(core)
    running = asyncio.create_task(batch(core, 5))
    await settle()
    assert len(core.engine.requests) == 1
    opened.set()
    await collect(first)
    assert summary(await running) == (5, 0)


async def test_items_wait_for_tokens() -> None:
    core = limited(tokens_per_minute=60)
    began = core.clock.time
    for _ in range(6):
        usage(core, 100, 0, 0)
    assert summary(await batch(core, 6, 1)) == (6, 0)
    assert 440 <= core.clock.time - began <= 520, "600 tokens, of which the last 100 are debt"


@pytest.mark.parametrize("quota", ["max_inflight", "tokens_per_minute"])
async def test_a_quota_of_nothing_fails_items_and_completions_at_once(quota: str) -> None:
    core = limited(**{quota: 0})
    assert refused(core).quota == quota
    events = await batch(core, 3)
    assert summary(events) == (0, 3)
    errors = [event.error for event in events if isinstance(event, BatchOutcome)]
    assert [getattr(error, "quota", "") for error in errors] == [quota] * 3


async def test_a_cancelled_batch_leaves_its_room_to_the_next_one() -> None:
    core = limited(max_inflight=2)
    opened = gate(core)
    first = begin(core, batch=True)
    waiting = [asyncio.create_task(batch(core, 3)) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    opened.set()
    await collect(first)
    waiting[1].cancel()
    assert summary(await waiting[2]) == (3, 0)


async def test_room_that_an_item_could_not_use_goes_to_the_next_one() -> None:
    core = limited(max_inflight=2)
    last, first = gate(core), gate(core)
    interactive = begin(core, request_id="r")
    item = begin(core, batch=True)
    refused = asyncio.create_task(batch(core, 1, request_id="r", text="another"))
    await settle()
    waiting = asyncio.create_task(batch(core, 3))
    await settle()
    first.set()
    await collect(item)
    async with asyncio.timeout(60):
        assert summary(await refused) == (0, 1)
        assert summary(await waiting) == (3, 0)
    last.set()
    await collect(interactive)


class BusyEngine(ScriptedEngine):
    """Answers after some rounds of the event loop, and counts the answers of ann."""

    anns = 0
    most_of_ann = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        is_ann = request.tenant == "ann"
        self.anns += is_ann
        self.most_of_ann = max(self.most_of_ann, self.anns)
        try:
            for _ in range(len(self.requests) % 5):
                await asyncio.sleep(0)
            async with aclosing(super().generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.anns -= is_ann


@settings(max_examples=60)
@given(
    most=st.integers(1, 5),
    slots=st.sampled_from([None, 1, 3]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["batch", "start", "cancel", "rest"]),
            st.sampled_from(["ann", "bob"]),
            st.integers(0, 12),
        ),
        max_size=25,
    ),
)
async def test_whatever_is_cancelled_the_quota_holds_and_every_batch_ends(
    most: int, slots: int | None, steps: list[tuple[str, str, int]]
) -> None:
    anns = TenantLimits(max_inflight=most)
    engine = BusyEngine(slots=slots)
    core = Core(engine, limits_of=lambda tenant: anns if tenant == "ann" else UNLIMITED)
    batches: list[tuple[int, asyncio.Task[list[BatchOutcome | BatchSummary]]]] = []
    for step, tenant, number in steps:
        if step == "batch":
            batches.append((number, asyncio.create_task(batch(core, number, tenant=tenant))))
        elif step == "start":
            with contextlib.suppress(QuotaExceeded):
                begin(core, tenant)
        elif step == "cancel" and batches:
            batches.pop(number % len(batches))[1].cancel()
        for _ in range(number):
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert [summary(await task) for _, task in batches] == [(count, 0) for count, _ in batches]
    await core.completions.drain(60)
    await settle()
    assert engine.most_of_ann <= most
    core.completions.quotas.check("ann", batch=True)  # nothing is left of it


def test_a_tenant_may_have_so_many_batches_at_a_time() -> None:
    quotas = limited(max_inflight=1).completions.quotas
    with (
        quotas.batch_call("ann"),
        quotas.batch_call("bob"),
        quotas.batch_call("bob"),
        pytest.raises(QuotaExceeded),
        quotas.batch_call("ann"),
    ):
        pass
    with quotas.batch_call("ann"):
        pass
