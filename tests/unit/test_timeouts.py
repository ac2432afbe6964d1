"""The timeouts of a request: for each read, and for all of it. Nothing else is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import pytest
from virtual_time import in_virtual_time

from ruvd.core.errors import EngineTimeout
from ruvd.engines.http.timeouts import ReadTimeout

SECONDS = 10.0
NEARLY = 9.9


async def parts(*pauses: float) -> AsyncGenerator[bytes, None]:
    """A part after each pause."""
    for pause in pauses:
        await asyncio.sleep(pause)
        yield b"part"


def reading(*pauses: float) -> Callable[[], Awaitable[bytes]]:
    """A function that reads a part after each pause, and then nothing."""
    return partial(anext, parts(*pauses), b"")


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_parts_come_through_and_then_their_end() -> None:
    read = reading(0, 0)
    with ReadTimeout(now() + SECONDS, SECONDS) as timeout:
        assert [await timeout.wait(read) for _ in range(4)] == [b"part", b"part", b"", b""]


@in_virtual_time
async def test_without_limits_it_waits() -> None:
    with ReadTimeout(None, None) as timeout:
        assert await timeout.wait(reading(1_000_000)) == b"part"
    assert now() == 1_000_000


@in_virtual_time
async def test_each_read_is_limited_also_after_reads_that_came_in_time() -> None:
    read = reading(0, NEARLY, NEARLY, NEARLY, 2 * SECONDS)
    with ReadTimeout(None, SECONDS) as timeout:
        for _ in range(4):
            assert await timeout.wait(read) == b"part"
        with pytest.raises(EngineTimeout, match="silent") as caught:
            await timeout.wait(read)
    assert now() == pytest.approx(3 * NEARLY + SECONDS)
    assert caught.value.__cause__ is None
    await asyncio.sleep(0)  # nothing is left to be cancelled


@in_virtual_time
async def test_time_that_the_task_takes_between_two_reads_does_not_count() -> None:
    read = reading(0, 0)
    with ReadTimeout(None, SECONDS) as timeout:
        await timeout.wait(read)
        await asyncio.sleep(2 * SECONDS)
        assert await timeout.wait(read) == b"part"


@in_virtual_time
async def test_the_deadline_holds_however_often_something_comes() -> None:
    read = reading(*[1.0] * 100)
    with (
        ReadTimeout(now() + 10.5, SECONDS) as timeout,
        pytest.raises(EngineTimeout, match="end its answer in time") as caught,
    ):
        while True:
            await timeout.wait(read)
    assert now() == pytest.approx(10.5)
    assert isinstance(caught.value.__cause__, TimeoutError)


@in_virtual_time
async def test_a_deadline_that_has_passed_ends_the_next_read_and_not_what_is_before_it() -> None:
    read = reading(0, 0, 0)
    with ReadTimeout(now() + SECONDS, None) as timeout:
        await timeout.wait(read)
        await asyncio.sleep(2 * SECONDS)
        with pytest.raises(EngineTimeout):
            await timeout.wait(read)
    assert now() == 2 * SECONDS


@in_virtual_time
async def test_a_deadline_may_be_brought_forward_but_not_back() -> None:
    read = reading(0, 1000)
    with ReadTimeout(now() + 100, 100) as timeout:
        await timeout.wait(read)
        timeout.shorten(SECONDS)
        timeout.shorten(50)
        with pytest.raises(EngineTimeout, match="in time"):
            await timeout.wait(read)
    assert now() == SECONDS


@in_virtual_time
async def test_a_reader_that_is_cancelled_is_cancelled() -> None:
    async def read() -> None:
        with ReadTimeout(now() + SECONDS, SECONDS) as timeout:
            await timeout.wait(reading(SECONDS))

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert now() == 0


@in_virtual_time
async def test_a_timeout_of_the_callers_that_ends_before_is_the_callers() -> None:
    with ReadTimeout(now() + SECONDS, SECONDS) as timeout, pytest.raises(TimeoutError):
        async with asyncio.timeout(NEARLY):
            await timeout.wait(reading(100))
    assert now() == NEARLY


@in_virtual_time
async def test_a_read_may_be_given_extra_time_and_the_next_has_none() -> None:
    read = reading(SECONDS + 4, 100)
    with ReadTimeout(None, SECONDS) as timeout:
        assert await timeout.wait(read, first_read_extra_seconds=5) == b"part"
        with pytest.raises(EngineTimeout, match="silent"):
            await timeout.wait(read)
    assert now() == pytest.approx(2 * SECONDS + 4)


@in_virtual_time
async def test_extra_time_has_an_end_too() -> None:
    with ReadTimeout(None, SECONDS) as timeout, pytest.raises(EngineTimeout, match="silent"):
        await timeout.wait(reading(100), first_read_extra_seconds=5)
    assert now() == pytest.approx(SECONDS + 5)
