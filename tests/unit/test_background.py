"""Background tasks are supervised, and no observer can fail the core."""

from __future__ import annotations

import asyncio
import logging

import pytest
from core import Core, settle
from fakes import FrozenClock

from ruvd.core.ports.events import BackgroundTaskFailed, Event, SessionCreated
from ruvd.server.background import BackgroundTasks
from ruvd.server.observers import Observers


class Supervised:
    """Background tasks on a frozen clock, which goes on by every delay."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.events: list[Event] = []
        self.given_up: list[str] = []
        self.delays: list[float] = []
        self.tasks = BackgroundTasks(
            self.clock, self.events.append, self.given_up.append, self.sleep
        )

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)


async def test_a_task_that_fails_is_told_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervised = Supervised()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise KeyError("a bug")

    with caplog.at_level(logging.ERROR, "ruvd.daemon"):
        supervised.tasks.start("sweep", run)
        await settle()
    assert runs == 3
    assert supervised.events == [BackgroundTaskFailed("sweep")] * 2
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert supervised.delays == [1, 2]
    assert not supervised.given_up


async def test_a_task_that_keeps_failing_is_given_up_once_and_still_started_again() -> None:
    supervised = Supervised()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        raise KeyError("a bug")

    supervised.tasks.start("sweep", run)
    await settle()
    assert runs > 10
    await supervised.tasks.close()
    assert supervised.given_up == ["sweep"]
    assert max(supervised.delays) == 60


async def test_a_task_that_fails_now_and_then_is_not_given_up() -> None:
    supervised = Supervised()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        supervised.clock.advance(301)
        raise KeyError("a bug")

    supervised.tasks.start("sweep", run)
    await settle()
    assert runs > 10
    await supervised.tasks.close()
    assert not supervised.given_up
    assert set(supervised.delays) == {1}


async def test_closing_ends_the_tasks() -> None:
    supervised = Supervised()
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    supervised.tasks.start("sweep", run)
    await settle()
    await supervised.tasks.close()
    assert ended.is_set()


async def test_a_task_that_awaits_a_cancelled_one_has_failed_and_is_started_again() -> None:
    supervised = Supervised()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            other = asyncio.create_task(asyncio.sleep(60))
            other.cancel()
            await other

    supervised.tasks.start("sweep", run)
    await settle()
    assert runs == 2
    assert supervised.events == [BackgroundTaskFailed("sweep")]


async def test_whoever_started_a_task_can_cancel_it() -> None:
    supervised = Supervised()
    task = supervised.tasks.start("sweep", asyncio.Event().wait)  # type: ignore[arg-type]
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert supervised.events == []


async def test_an_observer_that_fails_neither_fails_a_commit_nor_hides_it_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise KeyError("a bug")

    core = Core()
    core.observers.append(Observers(broken, told.append))
    with caplog.at_level(logging.ERROR, "ruvd.daemon"):
        finished = await core.say("one")
    assert finished.exchange_count == 1
    assert SessionCreated("s") in told
    assert caplog.records
