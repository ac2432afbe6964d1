"""Expiry, capacity and tenants' quotas over daemons that share a PostgreSQL database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psycopg
import pytest
from conversations import create, evicted, expired, session, turn
from fakes import FrozenClock
from postgres import Server
from store_replicas import replica, two, waiting_for_locks

from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.store import Commit, Gone


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
