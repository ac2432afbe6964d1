"""Sessions expire by the core's clock, which goes on over steps, restarts and failures."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from fakes import Machine

from ruvd.core.errors import SessionExists, SessionExpired, StoreUnavailable
from ruvd.core.model import Session
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.server.system_clock import SystemClock
from ruvd.stores.memory import MemoryStore
from ruvd.stores.sqlite.store import SqliteStore

DAY = 86_400.0
IDLE_SECONDS = 1800.0
STEPS = [1900.0, -DAY]


def ignore(event: Event) -> None:
    """Does nothing. An Observer."""


class Process:
    """The sessions of one process."""

    def __init__(self, store: Store, clock: SystemClock) -> None:
        self.store = store
        self.clock = clock
        policy = SessionPolicy(idle_timeout_seconds=IDLE_SECONDS)
        self.sessions = SessionRegistry(store, clock, ignore, policy)
        self.commands = SessionCommands(self.sessions, store, clock, ignore, policy)

    async def create(self, session_id: str) -> Session:
        return (await self.commands.create(NewSession(session_id))).session

    async def session(self, session_id: str) -> Session:
        """The session as clients see it."""
        return (await self.sessions.get(session_id)).session

    async def idle_seconds(self, session_id: str) -> float:
        return self.clock.now() - (await self.sessions.existing(session_id)).last_used_time


def process(machine: Machine, path: Path) -> Process:
    """Another process of the machine, with the SQLite store at the path."""
    clock = machine.clock()
    return Process(SqliteStore(path, clock=clock, observer=ignore), clock)


@asynccontextmanager
async def running(machine: Machine, path: Path) -> AsyncIterator[Process]:
    made = process(machine, path)
    await made.store.open()
    try:
        yield made
    finally:
        await made.store.close()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture(params=["memory", "sqlite"])
async def on_each_store(
    request: pytest.FixtureRequest, machine: Machine, path: Path
) -> AsyncIterator[Process]:
    clock = machine.clock()
    memory = Process(MemoryStore(), clock)
    made = memory if request.param == "memory" else process(machine, path)
    await made.store.open()
    yield made
    await made.store.close()


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_neither_expires_nor_revives_a_session(
    on_each_store: Process, machine: Machine, step: float
) -> None:
    running = on_each_store
    await running.create("expired")
    machine.pass_time(IDLE_SECONDS)
    await running.create("before")
    for seconds in (step, -step):
        machine.wall += seconds
        machine.pass_time(5)
        with pytest.raises(SessionExpired):
            await running.sessions.existing("expired")
        with pytest.raises(SessionExists):
            await running.create("before")
        await running.commands.append("before", [])
        await running.create(f"at {seconds}")
    assert await running.commands.sweep() == 1
    assert await running.idle_seconds("before") == 0
    assert await running.idle_seconds(f"at {step}") == 5
    machine.pass_time(IDLE_SECONDS)
    assert await running.commands.sweep() == 3


@pytest.mark.parametrize("step", STEPS)
async def test_clients_get_times_of_the_wall_clock(
    on_each_store: Process, machine: Machine, step: float
) -> None:
    created = await on_each_store.create("s")
    assert (created.create_time, created.last_used_time) == (machine.wall, machine.wall)
    machine.wall += step
    machine.pass_time(60)
    seen = await on_each_store.session("s")
    assert seen.create_time == machine.wall - 60
    assert seen.expire_time == machine.wall + IDLE_SECONDS - 60


@pytest.mark.parametrize("step", STEPS)
async def test_closing_and_opening_within_a_boot_keeps_the_time(
    on_each_store: Process, machine: Machine, path: Path, step: float
) -> None:
    first = on_each_store
    before = await first.create("s")
    await first.store.close()
    machine.pass_time(IDLE_SECONDS - 10)
    machine.wall += step
    second = first if isinstance(first.store, MemoryStore) else process(machine, path)
    await second.store.open()
    assert await second.idle_seconds("s") == IDLE_SECONDS - 10
    seen = await second.session("s")
    assert seen.expire_time == before.expire_time + step == machine.wall + 10
    machine.pass_time(10)
    assert await second.commands.sweep() == 1
    await second.store.close()


@pytest.mark.parametrize("seconds_off", [0.0, 600.0, 1799.0, 1800.0])
async def test_after_another_boot_idle_times_go_by_the_wall_clock(
    machine: Machine, path: Path, seconds_off: float
) -> None:
    async with running(machine, path) as first:
        await first.create("s")
    machine.restart(seconds_off)
    async with running(machine, path) as second:
        if seconds_off < IDLE_SECONDS:
            assert await second.idle_seconds("s") == seconds_off
        assert await second.commands.sweep() == (seconds_off == IDLE_SECONDS)


async def test_a_wall_clock_that_is_behind_in_another_boot_makes_no_negative_idle_time(
    machine: Machine, path: Path
) -> None:
    async with running(machine, path) as first:
        await first.create("older")
        machine.pass_time(100)
        await first.create("newest")
    machine.restart(-DAY)
    async with running(machine, path) as second:
        assert await second.idle_seconds("newest") == 0
        assert await second.idle_seconds("older") == 100
        assert (await second.session("newest")).expire_time == machine.wall + IDLE_SECONDS
        machine.wall += DAY  # the wall clock is put right
        machine.pass_time(IDLE_SECONDS - 100)
        assert await second.commands.sweep() == 1
        machine.pass_time(100)
        assert await second.commands.sweep() == 1


async def test_a_wall_clock_that_is_behind_in_another_boot_revives_no_session(
    machine: Machine, path: Path
) -> None:
    async with running(machine, path) as first:
        await first.create("s")
        machine.pass_time(IDLE_SECONDS)
    machine.restart(-DAY)
    async with running(machine, path) as second:
        with pytest.raises(SessionExpired):
            await second.sessions.existing("s")


async def test_the_reading_is_stored_by_a_sweep_after_a_step_and_by_closing(
    machine: Machine, path: Path
) -> None:
    def stored() -> list[tuple[str, float, float, float]]:
        with closing(sqlite3.connect(path)) as db:
            return list(db.execute("SELECT boot_id, offset_seconds, now, wall_shift FROM clock"))

    async with running(machine, path) as first:
        opened = first.clock.now()
        offset = opened - machine.uptime
        machine.pass_time(7)
        await first.commands.sweep()
        assert await asyncio.to_thread(stored) == [("first", offset, opened, 0)]
        machine.wall += 1900
        await first.commands.sweep()
        now = first.clock.now()
        assert await asyncio.to_thread(stored) == [("first", offset, now, 1900)]
        machine.pass_time(7)
    assert await asyncio.to_thread(stored) == [("first", offset, now + 7, 1900)]


async def test_times_after_the_clock_in_a_store_without_a_reading_become_the_clocks_time(
    machine: Machine, path: Path
) -> None:
    """An older ruvd has left them, which wrote times of the wall clock."""

    def age() -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM clock")
            db.execute(
                "UPDATE sessions SET last_used_time = last_used_time + ?1,"
                " expire_time = expire_time + ?1 WHERE id = 'later'",
                (DAY,),
            )

    async with running(machine, path) as first:
        await first.create("s")
        await first.create("later")
    await asyncio.to_thread(age)
    machine.pass_time(60)
    async with running(machine, path) as second:
        assert await second.idle_seconds("later") == 0
        assert await second.idle_seconds("s") == 60
        machine.pass_time(IDLE_SECONDS)
        assert await second.commands.sweep() == 2


@pytest.mark.parametrize("step", STEPS)
async def test_a_store_that_recovers_brings_its_time_before_it_is_changed(
    machine: Machine, path: Path, step: float
) -> None:
    """The calls that find it usable again have times of the wall clock, so that they fail."""
    aside = path.with_name("aside.db")

    def take_away() -> None:
        path.rename(aside)
        path.mkdir()

    def bring_back() -> None:
        path.rmdir()
        aside.rename(path)

    async with running(machine, path) as first:
        await first.create("s")
    await asyncio.to_thread(take_away)
    machine.pass_time(60)
    machine.wall += step
    second = process(machine, path)
    with pytest.raises(StoreUnavailable):
        await second.store.open()
    with pytest.raises(StoreUnavailable):
        await second.commands.sweep()
    await asyncio.to_thread(bring_back)
    with pytest.raises(StoreUnavailable, match="call again"):
        await second.commands.sweep()
    assert await second.commands.sweep() == 0
    assert await second.idle_seconds("s") == 60
    assert (await second.session("s")).last_used_time == machine.wall - 60
    await second.store.close()
