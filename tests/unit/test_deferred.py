"""Deferred calls are made in order, soon, and not inside of `add`."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from ruvd.telemetry.deferred import Deferred

_CURRENT = ContextVar("_CURRENT", default="")


async def test_calls_are_made_in_order_and_not_at_once() -> None:
    deferred, made = Deferred(), list[int]()
    last = asyncio.Event()
    deferred.add(made.append, 1)
    deferred.add(made.append, 2)
    deferred.add(last.set)
    assert made == []
    await last.wait()
    assert made == [1, 2]


async def test_a_complete_batch_does_not_wait_for_the_timer() -> None:
    deferred, made = Deferred(), list[int]()
    for number in range(128):
        deferred.add(made.append, number)
    assert made == []
    await asyncio.sleep(0)
    assert made == list(range(128))


async def test_another_thread_may_flush_and_each_call_is_made_once() -> None:
    deferred, made = Deferred(), list[int]()
    deferred.add(made.append, 1)
    await asyncio.to_thread(deferred.flush)
    deferred.flush()
    assert made == [1]


async def test_a_call_that_fails_does_not_stop_later_ones() -> None:
    deferred, made = Deferred(), list[int]()
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, about: failures.append(repr(about["exception"])))
    deferred.add(int, "no number")
    for number in range(127):
        deferred.add(made.append, number)
    await asyncio.sleep(0)
    assert len(failures) == 1
    deferred.flush()
    assert made == list(range(127))


async def test_calls_see_the_context_of_nobody() -> None:
    deferred, seen = Deferred(), list[str]()

    def look() -> None:
        seen.append(_CURRENT.get())

    _CURRENT.set("of the first caller")
    deferred.add(look)
    ended = asyncio.Event()
    deferred.add(ended.set)
    await ended.wait()  # until the timer
    for _ in range(128):
        deferred.add(look)
    await asyncio.sleep(0)  # a complete batch
    deferred.add(look)
    deferred.flush()
    assert seen == [""] * 130
