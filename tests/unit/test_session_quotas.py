"""The room of sessions in the core: places, stored bytes, and what is told when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from core import Core, collect, failed, settle
from fakes import done

from ruvd.core.errors import (
    CompletionCancelled,
    QuotaExceeded,
    SessionEvicted,
    SessionExpired,
    SessionLimit,
    SessionNotFound,
)
from ruvd.core.model import IfBusy, Message, Role
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import SessionGone
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.tenant_limits import UNLIMITED, TenantLimits


def core(max_sessions: int = 100, max_stored_bytes: int | None = None) -> Core:
    """A core in which the tenant `a` may have so many bytes."""
    own = TenantLimits(max_stored_bytes=max_stored_bytes)
    return Core(
        policy=SessionPolicy(
            max_sessions=max_sessions,
            limits_of=lambda tenant: own if tenant == "a" else UNLIMITED,
        )
    )


async def ids(core: Core, tenant: str) -> list[str]:
    page, _ = await core.sessions.list(after=0, limit=99, labels={}, tenant=tenant)
    return [state.session.id for state in page]


def gated(core: Core, count: int = 1) -> asyncio.Event:
    """Makes the next answers wait for the event."""
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("x"), done()] for _ in range(count)]
    return gate


async def fill(core: Core, *session_ids: str) -> None:
    for session_id in session_ids:
        await core.commands.create(NewSession(session_id))
        core.clock.advance(1)


async def test_a_new_session_evicts_its_own_tenants_least_recently_used_or_is_refused() -> None:
    full = core(max_sessions=3)
    await fill(full, "a/1", "b/1", "b/2")
    await full.say("hi", "b/3")
    assert SessionGone("b/1", "capacity") in full.events
    await failed(full.start("hi", "c/1"), SessionLimit)
    assert not full.engine.requests[1:], "it was refused before it was answered"
    with pytest.raises(SessionLimit):
        await full.commands.create(NewSession("c/1"))
    assert await ids(full, "a") == ["a/1"]
    # An expired session of any tenant makes room.
    full.clock.advance(1797)
    await full.say("hi", "c/1")
    assert SessionGone("a/1", "idle") in full.events


async def test_sessions_that_are_being_created_take_places_as_stored_ones_do() -> None:
    full = core(max_sessions=3)
    await fill(full, "a/1")
    gate = gated(full, 2)
    running = [full.start("hi", "b/1"), full.start("hi", "b/2")]
    await settle()
    await failed(full.start("hi", "c/1"), SessionLimit)
    with pytest.raises(SessionLimit):
        await full.commands.create(NewSession("b/3"))
    gate.set()
    for each in running:
        await collect(each)
    await full.say("hi", "b/3")
    assert len(await ids(full, "a")) == 1
    assert len(await ids(full, "b")) == 2


async def test_turns_at_once_do_not_take_more_than_a_tenant_has_to_give() -> None:
    full = core(max_sessions=8)
    await fill(full, *(f"a/{number}" for number in range(6)), "b/1", "b/2")
    gate = gated(full, 4)
    turns = [full.start("hi", f"b/new-{number}") for number in range(4)]
    await settle()
    gate.set()
    outcomes = await asyncio.gather(*map(collect, turns), return_exceptions=True)
    assert [type(each) for each in outcomes].count(SessionLimit) == 2
    assert len(await ids(full, "a")) == 6
    assert len(await ids(full, "b")) == 2


async def test_without_tenants_a_full_daemon_evicts_for_as_many_as_it_holds() -> None:
    full = core(max_sessions=4)
    await fill(full, *"wxyz")
    gate = gated(full, 4)
    turns = [full.start("hi", f"new-{number}") for number in range(4)]
    await settle()
    gate.set()
    await asyncio.gather(*map(collect, turns))
    assert await ids(full, "default") == [f"new-{number}" for number in range(4)]


@pytest.mark.parametrize("evicts", [True, False])
async def test_a_tenants_own_limit_holds_on_every_path(*, evicts: bool) -> None:
    limited = Core(
        policy=SessionPolicy(
            limits_of=lambda _: TenantLimits(max_sessions=2), evicts_at_tenant_limit=evicts
        )
    )
    await fill(limited, "a/1", "a/2")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: limited.say("hi", "a/3"),
        lambda: limited.commands.create(NewSession("a/4", messages=(Message(Role.USER, "x"),))),
        lambda: limited.commands.fork(NewFork("a/2", session_id="a/5")),
    ]
    for call in calls:
        if evicts:
            await limited.sessions.touch("a/2")
            await call()
        else:
            with pytest.raises(QuotaExceeded) as refused:
                await call()
            assert refused.value.quota == "max_sessions"
            assert refused.value.retry_after_seconds
        limited.clock.advance(1)
        assert len(await ids(limited, "a")) == 2
    await fill(limited, "b/1", "b/2")
    assert ("a/1" in await ids(limited, "a")) is not evicts


async def test_when_all_of_a_tenants_sessions_are_in_use_its_new_one_is_refused() -> None:
    limited = Core(policy=SessionPolicy(limits_of=lambda _: TenantLimits(max_sessions=2)))
    gate = gated(limited, 2)
    running = [limited.start("hi", name) for name in ("a/1", "a/2")]
    await settle()
    await failed(limited.start("hi", "a/3"), QuotaExceeded)
    with pytest.raises(QuotaExceeded):
        await limited.commands.create(NewSession("a/3"))
    await limited.commands.create(NewSession("b/1"))
    gate.set()
    await asyncio.gather(*map(collect, running))
    await limited.say("hi", "a/3")
    assert len(await ids(limited, "a")) == 2


async def test_expired_sessions_are_deleted_before_a_tenant_is_refused_bytes() -> None:
    limited = core(max_stored_bytes=100)
    await limited.say("x" * 80, "a/1")
    await failed(limited.start("x" * 80, "a/2"), QuotaExceeded)
    limited.clock.advance(1800)
    await limited.say("x" * 80, "a/2")
    with pytest.raises(QuotaExceeded):
        await limited.commands.create(NewSession("a/3", "x" * 80))
    limited.clock.advance(1800)
    await limited.commands.create(NewSession("a/3", "x" * 80))


async def test_the_messages_of_running_turns_count_for_the_bytes_of_their_tenant() -> None:
    limited = core(max_stored_bytes=100)
    gate = gated(limited)
    running = limited.start("x" * 60, "a/1")
    await settle()
    await failed(limited.start("x" * 60, "a/2"), QuotaExceeded)
    with pytest.raises(QuotaExceeded):
        await limited.commands.create(NewSession("a/2", "x" * 60))
    await limited.say("x" * 60, "b/1")
    running.cancel(CompletionCancelled("enough"))
    await failed(running, CompletionCancelled)
    gate.set()
    await limited.say("x" * 60, "a/2")


async def test_a_call_that_may_not_begin_interrupts_nobody() -> None:
    limited = core(max_sessions=100, max_stored_bytes=100)
    gate = gated(limited)
    running = limited.start("x" * 20, "a/1")
    await settle()
    await limited.commands.create(NewSession("a/2", "x" * 60))
    await collect_after(running, gate)
    gate = gated(limited)
    running = limited.start("hi", "a/1")
    await settle()
    interrupts = {"if_busy": IfBusy.INTERRUPT}
    await failed(limited.start("x" * 90, "a/1", **interrupts), QuotaExceeded)
    await collect_after(running, gate)

    limited.clock.advance(1800)
    gate = gated(limited)
    running = limited.start("hi", "a/1", recreate_if_gone=True)
    await settle()
    await failed(limited.start("hi", "a/1", **interrupts), SessionExpired)
    await collect_after(running, gate)
    gate = gated(limited)
    running = limited.start("hi", "b/1")
    await settle()
    needs = limited.start("hi", "b/1", require_existing=True, **interrupts)
    await failed(needs, SessionNotFound)
    await collect_after(running, gate)


async def collect_after(running: object, gate: asyncio.Event) -> None:
    gate.set()
    await collect(running)  # type: ignore[arg-type]


async def test_a_call_that_needs_a_session_may_take_a_new_one_for_one_that_has_gone() -> None:
    full = core(max_sessions=1)
    await fill(full, "b/old", "b/new")
    await failed(full.start("hi", "b/old", require_existing=True), SessionEvicted)
    both = {"require_existing": True, "recreate_if_gone": True}
    await full.say("hi", "b/old", **both)
    await failed(full.start("hi", "b/unknown", **both), SessionNotFound)


async def test_an_update_an_addition_and_a_fork_are_told_that_the_session_has_gone() -> None:
    full = core(max_sessions=1)
    await fill(full, "b/old", "b/new")
    with pytest.raises(SessionEvicted):
        await full.commands.append("b/old", [Message(Role.USER, "x")])
    with pytest.raises(SessionEvicted):
        await full.commands.fork(NewFork("b/old"))
    full.clock.advance(1800)
    with pytest.raises(SessionExpired):
        await full.commands.append("b/new", [Message(Role.USER, "x")])
    with pytest.raises(SessionExpired):
        await full.commands.fork(NewFork("b/new"))
    with pytest.raises(SessionNotFound):
        await full.commands.end("b/new")


async def test_a_refused_flood_sweeps_the_store_once_a_second() -> None:
    full = core(max_sessions=1)
    await fill(full, "b/1")
    await failed(full.start("hi", "c/1"), SessionLimit)
    await full.commands.end("b/1")
    await full.commands.create(NewSession("b/1", idle_timeout_seconds=0.5))
    full.clock.advance(0.6)
    await failed(full.start("hi", "c/1"), SessionLimit)
    full.clock.advance(0.5)
    await full.say("hi", "c/1")
