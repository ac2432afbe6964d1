"""Expiry, capacity and tenants' quotas over daemons that share a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from conversations import create, evicted, expired, session, turn
from core import Core, collect
from fakes import FrozenClock, done
from postgres import Server
from store_replicas import end_leases, linked, replica, two, waiting_for_locks

from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.errors import CompletionCancelled, QuotaExceeded, StoreUnavailable
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.store import Commit, Gone
from ruvd.core.tenant_limits import UNLIMITED, TenantLimits
from ruvd.stores.postgres.store import PostgresStore


async def test_a_session_is_used_for_all_daemons_as_long_as_a_turn_runs_in_it(
    postgres: Server,
) -> None:
    conninfo, clock = postgres.new_schema(), FrozenClock()
    async with replica(conninfo, clock=clock) as one, replica(conninfo, clock=clock) as other:
        await create(one, "long", now=clock.now(), idle=10)
        await create(one, "idle", now=clock.now(), idle=10)
        await one.begin_turn("long", "", clock.now())
        for _ in range(3):  # the turn takes longer than the time-out
            clock.advance(8)
            await one._lease.renew()
        found = await other.get("long")
        assert found is not None
        assert found.last_used_time == clock.now()
        page, _ = await other.list(after=0, limit=9, labels={}, now=clock.now())
        assert [each.id for each in page] == ["long"]
        assert await other.gone("long", clock.now()) is None
        assert await other.expire(clock.now(), ()) == ["idle"]
        assert await one.gone("idle", clock.now()) is Gone.EXPIRED


async def test_each_expired_session_is_deleted_by_one_daemon(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        made = [f"s{number}" for number in range(40)]
        await asyncio.gather(*(create(one, each, idle=5) for each in made))
        await create(other, "alive", idle=50)
        found = await asyncio.gather(*(each.expire(9, ()) for each in (one, other) * 3))
        assert sorted(each for ids in found for each in ids) == sorted(made)
        assert (await one.counts(9)).sessions == 1


async def test_one_capacity_counts_for_all_daemons_after_a_sweep(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        for number in range(3):
            await create(one, f"s{number}", now=number)
        await other.expire(0, ())
        made = Commit(session("new", now=9), create=True, max_sessions=3, now=9)
        assert [*await other.commit(made)] == evicted("s0")
        # Until its sweep the first daemon counts what it has itself created.
        made = Commit(session("newer", now=9), create=True, max_sessions=3, now=9)
        assert [*await one.commit(made)] == evicted("s1")
        assert (await one.counts(9)).sessions == 3


@pytest.mark.parametrize("evicts", [True, False])
async def test_a_tenants_sessions_are_counted_exactly_however_many_daemons_create_them(
    postgres: Server,
    evicts: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    async with two(postgres) as (one, other, _):
        outcomes = await asyncio.gather(
            *(
                store.commit(
                    Commit(
                        session(f"a/{place}-{number}", now=number),
                        create=True,
                        refusable=True,
                        max_own_sessions=3,
                        evicts_own=evicts,
                        now=number,
                    )
                )
                for number in range(8)
                for place, store in enumerate((one, other))
            ),
            return_exceptions=True,
        )
        assert (await one.usage("a")).own_sessions == 3
        refused = [each for each in outcomes if isinstance(each, BaseException)]
        assert {type(each) for each in refused} <= {QuotaExceeded}
        assert len(refused) == (0 if evicts else 13)


async def test_appended_messages_never_exceed_the_bytes_of_a_tenant(postgres: Server) -> None:
    async with two(postgres) as (one, other, conninfo):
        for name in ("a/s", "a/t"):
            await create(one, name)
        changes = []
        for store, name in ((one, "a/s"), (other, "a/t")):
            found = await store.get(name)
            assert found is not None
            change = replace(turn(found, "123456"), refusable=True, max_own_bytes=20)
            changes.append((store, change))
        with psycopg.connect(conninfo) as db:
            db.execute("SELECT FROM sessions FOR UPDATE")
            running = [asyncio.ensure_future(store.commit(each)) for store, each in changes]
            await waiting_for_locks(conninfo, 2)
            db.rollback()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert [type(each) for each in outcomes if each] == [QuotaExceeded]
        assert (await one.usage("a")).own_bytes == 16


async def test_an_expired_session_of_a_tenant_gives_its_place_to_one_at_another_daemon(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, _):
        await create(one, "a/s", idle=5)
        made = Commit(
            session("a/t", now=9),
            create=True, refusable=True, max_own_sessions=1, evicts_own=False, now=9,
        )  # fmt: skip
        assert [*await other.commit(made)] == expired("a/s")


@asynccontextmanager
async def two_limited(server: Server, **limits: int) -> AsyncIterator[tuple[Core, Core, str]]:
    """The cores of two daemons in which ann has these limits, with the same clock."""
    clock, anns = FrozenClock(), TenantLimits(**limits)  # type: ignore[arg-type]

    def limits_of(tenant: str) -> TenantLimits:
        return anns if tenant == "ann" else UNLIMITED

    async with two(server) as (one, other, conninfo):
        cores = [Core(store=each, clock=clock, limits_of=limits_of) for each in (one, other)]
        for store, core in zip((one, other), cores, strict=True):
            core.completions.quotas.share()
            store.replicas.share_usage(core.completions.quotas)
            await store._lease.renew()
        yield cores[0], cores[1], conninfo


async def renew(*cores: Core) -> None:
    """Renews the leases of daemons, one after the other."""
    for each in cores:
        assert isinstance(each.store, PostgresStore)
        await each.store._lease.renew()


def refused(core: Core) -> str:
    """Returns the quota beyond which a call of ann is."""
    with pytest.raises(QuotaExceeded) as error:
        core.start("more", "", tenant="ann")
    return error.value.quota


async def test_tokens_that_a_tenant_has_used_at_one_daemon_count_at_another_after_a_renewal(
    postgres: Server,
) -> None:
    async with two_limited(postgres, tokens_per_minute=600) as (one, other, _):
        one.engine.scripts.append([EngineText("x"), done(900, 0, 0)])
        await one.say("much", "ann/s", tenant="ann")
        await renew(one, other)
        assert refused(other) == "tokens_per_minute"
        await other.say("hi", "bob/s", tenant="bob")
        # Each token counts once, and the tenant makes up for it at the same rate as at one daemon.
        for _ in range(5):
            await renew(other, one)
        other.clock.advance(30.0)
        assert [refused(one), refused(other)] == ["tokens_per_minute"] * 2
        other.clock.advance(0.2)
        await other.say("again", "ann/s", tenant="ann")


async def test_completions_in_progress_at_one_daemon_count_at_another_after_a_renewal(
    postgres: Server,
) -> None:
    async with two_limited(postgres, max_inflight=2) as (one, other, _):
        opened = asyncio.Event()
        one.engine.scripts += [[EngineText("so far"), opened, done()] for _ in range(2)]
        running = [one.start("hi", "", tenant="ann") for _ in range(2)]
        await renew(one, other)
        assert refused(other) == "max_inflight"
        await other.say("hi", "", tenant="bob")
        opened.set()
        await asyncio.gather(*map(collect, running))
        await renew(one, other)
        await other.say("hi", "", tenant="ann")


async def test_what_a_dead_daemon_ran_counts_no_more_when_its_lease_is_over(
    postgres: Server,
) -> None:
    async with two_limited(postgres, max_inflight=1) as (one, other, conninfo):
        one.engine.scripts.append([EngineText("so far"), asyncio.Event()])
        running = one.start("hi", "", tenant="ann")
        await renew(one, other)
        assert refused(other) == "max_inflight"
        end_leases(conninfo)
        await renew(other)
        await other.say("hi", "", tenant="ann")
        await renew(one, other)  # it was paused only
        assert refused(other) == "max_inflight"
        assert isinstance(one.store, PostgresStore)
        await one.store._lease.leave()
        await renew(other)
        await other.say("hi", "", tenant="ann")
        running.cancel(CompletionCancelled("enough"))
        await running.ended()


async def test_a_daemon_that_cannot_reach_the_database_keeps_what_it_knows_for_its_lease(
    postgres: Server,
) -> None:
    anns = TenantLimits(max_inflight=1)
    async with linked(postgres) as (store, link, conninfo), replica(conninfo) as other:
        core = Core(store=store, limits_of=lambda _: anns)
        busy = TenantQuotas(lambda _: anns, core.clock, 0.5)
        busy.begin("ann", batch=False)
        for shared, quotas in ((other, busy), (store, core.completions.quotas)):
            quotas.share()
            shared.replicas.share_usage(quotas)
            await shared._lease.renew()
        link.answered = False

        async def fail_to_renew() -> None:
            link.marker = b"tenant_usage"
            with pytest.raises(StoreUnavailable):
                await store._lease.renew()

        await fail_to_renew()
        assert refused(core) == "max_inflight"
        store._lease._until = 0.0
        await fail_to_renew()
        await collect(core.start("hi", "", tenant="ann"))
