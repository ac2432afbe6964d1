"""The system clock: no step of the wall clock changes it, in a boot and over a restart in it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from core import Core, settle
from fakes import Machine

from ruvd.server.system_clock import SystemClock, read_boot_id, watch_wall_clock

DAY = 86_400.0


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_the_real_clock_shows_the_wall_clocks_time_and_knows_its_boot() -> None:
    boot_id = await asyncio.to_thread(read_boot_id)
    clock = SystemClock(boot_id)
    assert boot_id
    assert clock.reading().boot_id == boot_id
    first = clock.now()
    assert first <= clock.now()
    assert clock.wall_shift() == clock.wall_step() == 0.0


@pytest.mark.parametrize("seconds", [1900.0, -DAY])
def test_a_step_of_the_wall_clock_changes_only_the_shift(machine: Machine, seconds: float) -> None:
    clock = machine.clock()
    began = clock.now()
    assert began == machine.wall
    machine.wall += seconds
    assert clock.now() == began
    assert clock.wall_shift() == seconds
    machine.pass_time(60)
    assert clock.now() == began + 60
    assert clock.wall_shift() == seconds


def test_small_differences_of_the_clocks_change_no_time_that_clients_see(machine: Machine) -> None:
    clock = machine.clock()
    machine.wall += 0.9
    assert clock.wall_shift() == 0.0
    machine.wall += 0.2  # with the one before, it is more than a second
    assert clock.wall_shift() == pytest.approx(1.1)
    shift = clock.wall_shift()
    machine.wall += 0.5
    assert clock.wall_shift() == shift


def test_a_step_is_reported_once(machine: Machine) -> None:
    clock = machine.clock()
    assert clock.wall_step() == 0.0
    machine.wall += 1900
    assert clock.wall_step() == 1900
    assert clock.wall_step() == 0.0
    machine.wall -= 1900
    assert clock.wall_step() == -1900


@pytest.mark.parametrize("seconds", [1900.0, -DAY])
def test_the_next_process_of_the_boot_goes_on_whatever_the_wall_clock_shows(
    machine: Machine, seconds: float
) -> None:
    first = machine.clock()
    machine.pass_time(100)
    reading, ended = first.reading(), first.now()
    machine.pass_time(10)
    machine.wall += seconds
    second = machine.clock()
    second.resume(reading, ended)
    assert second.now() == ended + 10
    assert second.wall_shift() == seconds
    assert second.wall_step() == seconds


def test_a_known_step_is_not_reported_by_the_next_process_again(machine: Machine) -> None:
    first = machine.clock()
    machine.wall += 1900
    reading = first.reading()
    second = machine.clock()
    second.resume(reading, first.now())
    assert second.wall_shift() == 1900
    assert second.wall_step() == 0.0


def test_while_the_machine_is_off_the_time_passes_by_the_wall_clock(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    first = machine.clock()
    reading, ended = first.reading(), first.now()
    machine.restart(seconds_off=600)
    second = machine.clock()
    with caplog.at_level(logging.INFO, "ruvd.daemon"):
        second.resume(reading, ended)
    assert second.now() == ended + 600
    assert (second.wall_shift(), second.wall_step()) == (0.0, 0.0)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert vars(record)["seconds"] == 600


def test_a_corrected_wall_clock_expires_nothing_over_a_restart_of_the_machine(
    machine: Machine,
) -> None:
    """A machine without a battery begins with a wrong time, which is corrected forward."""
    first = machine.clock()
    machine.wall += DAY
    reading, ended = first.reading(), first.now()
    machine.restart(seconds_off=600)
    second = machine.clock()
    second.resume(reading, ended)
    assert second.now() == ended + 600
    assert (second.wall_shift(), second.wall_step()) == (DAY, 0.0)


@pytest.mark.parametrize("before", [0.0, DAY, -DAY])
def test_a_wall_clock_that_is_behind_after_a_restart_is_logged_and_makes_no_negative_idle_time(
    machine: Machine, caplog: pytest.LogCaptureFixture, before: float
) -> None:
    first = machine.clock()
    machine.wall += before
    reading, newest = first.reading(), first.now() + 5
    machine.pass_time(10)
    machine.restart(seconds_off=-2 * DAY)
    second = machine.clock()
    with caplog.at_level(logging.WARNING, "ruvd.daemon"):
        second.resume(reading, newest)
    assert second.now() == newest
    assert second.now() + second.wall_shift() == machine.wall
    assert second.wall_step() == 0.0
    (record,) = caplog.records
    assert vars(record)["wall_clock"] < vars(record)["newest_stored"]


def test_a_wall_clock_that_was_set_back_before_the_restart_and_right_after_it_expires_nothing(
    machine: Machine,
) -> None:
    first = machine.clock()
    machine.wall -= DAY
    reading, ended = first.reading(), first.now()
    machine.restart(seconds_off=DAY + 600)
    second = machine.clock()
    second.resume(reading, ended)
    assert second.now() == ended + 600


def test_an_uptime_that_cannot_be_of_the_same_boot_is_not_trusted(machine: Machine) -> None:
    """In a time namespace, the uptime is another one, under the same boot id."""
    first = machine.clock()
    reading, ended = first.reading(), first.now()
    machine.uptime -= 1000
    machine.wall += 60
    second = machine.clock()
    second.resume(reading, ended)
    assert second.now() == ended + 60


def test_without_a_boot_id_each_start_goes_by_the_wall_clock(machine: Machine) -> None:
    machine.boot_id = ""
    first = machine.clock()
    reading, ended = first.reading(), first.now()
    machine.pass_time(10)
    machine.wall += 5
    second = machine.clock()
    second.resume(reading, ended)
    assert second.now() == ended + 15


def test_a_store_without_a_reading_leaves_the_clock_as_it_is(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = machine.clock()
    machine.wall += 1900
    began = clock.now()
    clock.resume(None, began + 60)
    assert clock.now() == began
    assert "wall clock behind the store" in caplog.text


async def test_the_watch_logs_each_step_once_with_its_size(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = machine.clock()
    steps = [0.0, 1900.0, 0.0, 0.5, -DAY, 0.0]
    stepped: list[float] = []

    async def sweep() -> None:
        stepped.append(machine.wall)

    async def sleep(seconds: float) -> None:
        assert 0 < seconds <= 5
        if not steps:
            await asyncio.Event().wait()
        machine.pass_time(seconds)
        machine.wall += steps.pop(0)

    with caplog.at_level(logging.WARNING, "ruvd.daemon"):
        watch = asyncio.create_task(watch_wall_clock(clock, sweep, sleep))
        await settle()
        watch.cancel()
    logged = [(vars(record)["direction"], vars(record)["seconds"]) for record in caplog.records]
    assert logged == [("forward", 1900), ("back", DAY - 0.5)]
    assert len(stepped) == 2


async def test_clients_see_times_of_the_wall_clock_and_a_step_of_it_expires_nothing() -> None:
    core = Core()
    await core.say()
    before = (await core.sessions.get("s")).session
    core.clock.advance(10)
    core.clock.shift = 1900.0
    after = (await core.sessions.get("s")).session
    assert after == replace(
        before,
        create_time=before.create_time + 1900,
        last_used_time=before.last_used_time + 1900,
    )
    assert after.expire_time == before.expire_time + 1900
    (listed,), _ = await core.sessions.list(after=0, limit=10, labels={})
    assert listed.session == after
    assert await core.commands.sweep() == 0
    await core.say()
    core.clock.shift = -DAY
    stored = await core.store.get("s")
    assert stored is not None
    assert stored.last_used_time == core.clock.now()
