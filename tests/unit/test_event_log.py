"""The event log: gathering, sealing, any number of readers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import CompletionEvent, Delta, Started

STARTED = Started(
    "c", "s", session_created=False, model="m", context_messages=1, context_trimmed=False
)


async def collect(log: EventLog, after: int = 0) -> list[CompletionEvent]:
    events = []
    while event := await log.next(after):
        events.append(event)
        after = event.sequence
    return events


async def test_text_gathers_until_a_reader_takes_it() -> None:
    log = EventLog(1 << 20)
    log.append(STARTED)
    log.append_text("one ")
    log.append_text("two")
    assert await log.next(0) == CompletionEvent(1, STARTED)
    assert await log.next(1) == CompletionEvent(2, Delta("one two"))
    log.append_text(" three")
    assert await log.next(2) == CompletionEvent(3, Delta(" three"))


async def test_a_reader_who_waits_gets_the_text_at_once() -> None:
    log = EventLog(1 << 20)
    first = asyncio.ensure_future(log.next(0))
    await asyncio.sleep(0)
    log.append_text("hello")
    assert await first == CompletionEvent(1, Delta("hello"))


async def test_an_error_comes_after_the_events_and_to_every_reader() -> None:
    log = EventLog(1 << 20)
    log.append_text("part")
    log.close(EngineUnavailable("gone"))
    for _ in range(2):
        assert await log.next(0) == CompletionEvent(1, Delta("part"))
        with pytest.raises(EngineUnavailable):
            await log.next(1)


@given(
    parts=st.lists(st.text(min_size=1, max_size=5), max_size=12),
    readers=st.lists(st.integers(0, 12), max_size=5),
)
def test_every_reader_sees_the_same_numbered_events(parts: list[str], readers: list[int]) -> None:
    async def play() -> None:
        log = EventLog(1 << 20)
        log.append(STARTED)
        tasks = []
        for index, part in enumerate(parts):
            tasks += [asyncio.ensure_future(collect(log)) for at in readers if at == index]
            await asyncio.sleep(0)
            log.append_text(part)
        log.close()
        whole = await collect(log)
        assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))
        text = "".join(event.event.text for event in whole if isinstance(event.event, Delta))
        assert text == "".join(parts)
        for task in tasks:
            assert await task == whole
        for after in range(len(whole) + 1):
            assert await collect(log, after) == whole[after:]

    asyncio.run(play())
