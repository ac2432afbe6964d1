"""How long a reader waits: for each part, and in all; and that nothing else is ended by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import pytest

from ruvd.core.errors import EngineTimeout
from ruvd.engines.http.timeouts import ReadTimeout

SILENCE = 0.05


async def parts(*pauses: float) -> AsyncGenerator[bytes, None]:
    """A part after each pause."""
    for pause in pauses:
        await asyncio.sleep(pause)
        yield b"part"


def reading(*pauses: float) -> Callable[[], Awaitable[bytes]]:
    """What gives a part after each pause, and then nothing."""
    return partial(anext, parts(*pauses), b"")


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_parts_come_through_and_then_their_end() -> None:
    come = reading(0, 0)
    with ReadTimeout(soon(10), 10) as patience:
        assert [await patience.wait(come) for _ in range(4)] == [b"part", b"part", b"", b""]


async def test_without_bounds_it_waits() -> None:
    with ReadTimeout(None, None) as patience:
        assert await patience.wait(reading(SILENCE)) == b"part"


async def test_a_silence_is_bounded_also_after_parts_that_came_in_time() -> None:
    come = reading(0, SILENCE / 2, SILENCE / 2, SILENCE / 2, 10)
    with ReadTimeout(None, SILENCE) as patience:
        for _ in range(4):
            assert await patience.wait(come) == b"part"
        with pytest.raises(EngineTimeout, match="silent") as caught:
            await patience.wait(come)
    assert caught.value.__cause__ is None
    await asyncio.sleep(0)  # nothing is left to be cancelled


async def test_what_the_reader_does_between_two_parts_is_no_silence() -> None:
    come = reading(0, 0)
    with ReadTimeout(None, SILENCE) as patience:
        await patience.wait(come)
        await asyncio.sleep(2 * SILENCE)
        assert await patience.wait(come) == b"part"


async def test_the_deadline_holds_however_often_something_comes() -> None:
    come = reading(*[SILENCE / 5] * 1000)
    with (
        ReadTimeout(soon(SILENCE), 10) as patience,
        pytest.raises(EngineTimeout, match="end its answer in time") as caught,
    ):
        while True:
            await patience.wait(come)
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_deadline_that_has_passed_ends_the_next_wait_and_not_what_is_before_it() -> None:
    come = reading(0, 0, 0)
    with ReadTimeout(soon(SILENCE), None) as patience:
        await patience.wait(come)
        await asyncio.sleep(2 * SILENCE)
        with pytest.raises(EngineTimeout):
            await patience.wait(come)


async def test_a_deadline_may_be_brought_forward_but_not_back() -> None:
    come = reading(0, 10)
    with ReadTimeout(soon(10), 10) as patience:
        await patience.wait(come)
        patience.shorten(SILENCE)
        patience.shorten(10)
        with pytest.raises(EngineTimeout, match="in time"):
            await patience.wait(come)


async def test_a_reader_that_is_cancelled_is_cancelled() -> None:
    async def read() -> None:
        with ReadTimeout(soon(10), 10) as patience:
            await patience.wait(reading(10))

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_within_a_time_out_of_the_callers_it_is_the_callers_that_ends_it() -> None:
    with ReadTimeout(soon(10), 10) as patience, pytest.raises(TimeoutError):
        async with asyncio.timeout(SILENCE):
            await patience.wait(reading(10))


async def test_a_wait_may_be_allowed_to_last_longer_and_the_next_is_not() -> None:
    come = reading(2 * SILENCE, 10)
    with ReadTimeout(None, SILENCE) as patience:
        assert await patience.wait(come, first_read_extra_seconds=10) == b"part"
        with pytest.raises(EngineTimeout, match="silent"):
            await patience.wait(come)
