"""The event log: gathering, sealing, any number of readers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.completions.event_log import EventLog
from ruvd.core.errors import CompletionNotFound, EngineUnavailable
from ruvd.core.model import (
    CompletionEvent,
    Delta,
    Finished,
    FinishReason,
    Message,
    Role,
    Started,
    Timings,
    ToolCallDelta,
)

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


async def test_the_text_that_still_gathers_counts_in_the_size() -> None:
    log = EventLog(1 << 20)
    log.append(STARTED)
    before = log.size_bytes
    for _ in range(1000):
        log.append_text("x" * 100)
    assert log.size_bytes >= before + 100_000
    await log.next(1)
    assert 100_000 <= log.size_bytes - before < 110_000


async def test_text_that_nobody_reads_never_gathers_far_beyond_the_limit() -> None:
    log = EventLog(10_000)
    for _ in range(1000):
        log.append_text("x" * 100)
        assert log.size_bytes < 25_000
    assert log.last_sequence > 1


def finished(text: str) -> Finished:
    timings = Timings(0.0, 0.0, 1.0, None)
    message = Message(Role.ASSISTANT, text)
    return Finished(FinishReason.STOP, message, None, timings, exchange_count=1)


async def test_a_reader_whose_next_events_are_gone_gets_finished_once_it_is_there() -> None:
    """Also if the reader asks while the completion still runs: only then is the end unknown."""
    log = EventLog(1_000)
    log.append(STARTED)
    text = []
    for number in range(20):
        text.append(f"{number} " * 50)
        log.append_text(text[-1])
        await log.next(log.last_sequence - 1)  # the fast reader takes it, which seals it
    slow = asyncio.ensure_future(log.next(1))
    await asyncio.sleep(0)
    assert not slow.done()
    log.append(finished("".join(text)))
    event = await slow
    assert event is not None
    assert event.event == finished("".join(text))


@pytest.mark.parametrize("kind", ["text", "reasoning", "arguments"])
async def test_a_reader_who_falls_behind_gets_a_large_answer_in_pieces_that_fit(kind: str) -> None:
    log = EventLog(100_000)
    log.append(STARTED)
    text = "\N{SNOWMAN}" * 3_000_000
    log.attach()
    if kind == "text":
        log.append_text(text)
    elif kind == "reasoning":
        log.append_reasoning(text)
    else:
        log.append_tool_call(ToolCallDelta(1, "id", "name", text))
    log.append(finished(text))
    log.close()
    events = await collect(log)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    deltas = [event.event for event in events if isinstance(event.event, Delta)]
    calls = [delta.tool_call for delta in deltas if delta.tool_call]
    parts = [call.arguments for call in calls] or [each.text or each.reasoning for each in deltas]
    assert "".join(parts) == text
    assert max(len(part.encode()) for part in parts) < 4 << 20
    assert [(call.index, call.id, call.name) for call in calls[:2]] in (
        [],
        [(1, "id", "name"), (1, "", "")],
    )


async def test_a_log_without_readers_is_small_again_and_those_who_adopted_it_go_on() -> None:
    log, other = EventLog(100_000), EventLog(100_000)
    log.attach()
    log.append(STARTED)
    for _ in range(5):
        log.append_text("x" * 300_000)
    log.append(finished("x" * 1_500_000))
    log.close()
    other.adopt(log)
    other.close()
    first = await other.next(0)
    assert first == CompletionEvent(1, STARTED)
    before, kept = log.size_bytes, log.kept_bytes
    log.detach()
    assert log.size_bytes == kept < before
    assert [event.event for event in await collect(log)] == [finished("x" * 1_500_000)]
    rest = await collect(other, 1)
    texts = [event.event.text for event in rest if isinstance(event.event, Delta)]
    assert "".join(texts) == "x" * 1_500_000


@pytest.mark.parametrize("error", [None, EngineUnavailable("gone")])
async def test_a_reader_whose_next_events_are_gone_gets_the_reason_of_a_failure(
    error: EngineUnavailable | None,
) -> None:
    log = EventLog(1_000)
    for _ in range(20):
        log.append_text("x" * 200)
        await log.next(log.last_sequence - 1)
    slow = asyncio.ensure_future(log.next(0))
    await asyncio.sleep(0)
    log.close(error)
    with pytest.raises(EngineUnavailable if error else CompletionNotFound):
        await slow
