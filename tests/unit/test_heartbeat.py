"""The heartbeat that finds a hung engine, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from virtual_time import in_virtual_time

from ruvd.engines.llama.heartbeat import Pulse, wait_until_hung

HANG_SECONDS = 30.0


class Child:
    """A child that answers, computes or is silent as a function of the time says."""

    def __init__(self, state: Callable[[float], Pulse], answer_seconds: float = 0.0) -> None:
        self._state = state
        self._answer_seconds = answer_seconds

    async def pulse(self, seconds: float) -> Pulse:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while loop.time() < asked + seconds:
            if self._state(loop.time()) is Pulse.ANSWERS:
                await asyncio.sleep(self._answer_seconds)
                return Pulse.ANSWERS
            await asyncio.sleep(0.25)
        return self._state(asked)

    async def found_hung_at(self) -> float:
        async with asyncio.timeout(3600):
            await wait_until_hung(self.pulse, HANG_SECONDS)
        return asyncio.get_running_loop().time()


def silent_from(stopped_at: float) -> Callable[[float], Pulse]:
    return lambda now: Pulse.ANSWERS if now < stopped_at else Pulse.SILENT


@pytest.mark.parametrize("stopped_at", [0.0, 0.1, 4.9, 5.0, 333.3])
def test_a_child_that_falls_silent_is_found_within_the_time(stopped_at: float) -> None:
    @in_virtual_time
    async def run() -> None:
        child = Child(silent_from(stopped_at), answer_seconds=0.05)
        silence = await child.found_hung_at() - stopped_at
        assert HANG_SECONDS / 2 < silence < HANG_SECONDS

    run()


@in_virtual_time
async def test_a_child_that_answers_late_but_in_time_is_not_hung() -> None:
    """It answers for a second of every 20, as between long batches."""
    child = Child(lambda now: Pulse.ANSWERS if now % 20 < 1 else Pulse.SILENT)
    with pytest.raises(TimeoutError):
        await child.found_hung_at()


@in_virtual_time
async def test_a_child_that_computes_has_ten_times_as_long() -> None:
    child = Child(lambda _: Pulse.COMPUTES)
    assert await child.found_hung_at() == 10 * HANG_SECONDS


@in_virtual_time
async def test_a_child_that_fails_at_once_is_not_asked_more_often() -> None:
    asked: list[float] = []

    async def refuses(_: float) -> Pulse:
        asked.append(asyncio.get_running_loop().time())
        return Pulse.SILENT

    await wait_until_hung(refuses, HANG_SECONDS)
    assert asked == [0.0, 5.0, 10.0, 15.0]


@in_virtual_time
async def test_a_daemon_that_stood_still_does_not_blame_the_child() -> None:
    """A question that was open for an hour counts once, and the next one is answered."""
    asked = 0

    async def pulse(_: float) -> Pulse:
        nonlocal asked
        asked += 1
        if asked % 2:
            await asyncio.sleep(3600)
            return Pulse.SILENT
        return Pulse.ANSWERS

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100_000):
            await wait_until_hung(pulse, HANG_SECONDS)
