"""The coalescing of reads: readers are woken at once while they are few, together when many."""

from __future__ import annotations

import asyncio

from virtual_time import in_virtual_time

from ruvd.engines.http.read_coalescing import CoalescedStream, ReadCoalescer

# 1,280 reads a second for 32 streams.
STREAMS = 32
INTERVAL = 0.025


class Reader:
    """A stream's reader, which counts how often it was woken."""

    def __init__(self, coalescer: ReadCoalescer) -> None:
        self.wakes = 0
        self._coalescer = coalescer
        self._stream = CoalescedStream(self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def start_answer(self) -> None:
        self._coalescer.start_answer(self._stream)

    def receive(self, count: int = 1) -> None:
        for _ in range(count):
            self._coalescer.data_arrived(self._stream)


def coalescer(active_streams: int) -> ReadCoalescer:
    made = ReadCoalescer()
    made.active_streams = active_streams
    return made


@in_virtual_time
async def test_while_few_streams_are_active_each_read_wakes_its_reader_at_once() -> None:
    reader = Reader(coalescer(8))
    for count in range(1, 20):
        reader.receive()
        assert reader.wakes == count


@in_virtual_time
async def test_the_first_reads_of_an_answer_are_never_delayed() -> None:
    reader = Reader(coalescer(STREAMS))
    for count in range(1, 3):
        reader.receive()
        assert reader.wakes == count
    reader.start_answer()
    reader.receive()
    assert reader.wakes == 3


@in_virtual_time
async def test_the_first_read_of_an_answer_does_not_wait_for_the_end_of_the_one_before() -> None:
    reader = Reader(coalescer(STREAMS))
    reader.receive(4)
    assert reader.wakes == 3  # the fourth waits
    reader.start_answer()
    reader.receive()
    assert reader.wakes == 4


@in_virtual_time
async def test_with_many_streams_what_comes_within_an_interval_is_read_together() -> None:
    shared = coalescer(STREAMS)
    early, late = Reader(shared), Reader(shared)
    early.receive(5)
    await asyncio.sleep(INTERVAL * 0.7)
    late.receive(4)
    assert (early.wakes, late.wakes) == (3, 3)
    await asyncio.sleep(INTERVAL * 0.2)
    assert (early.wakes, late.wakes) == (3, 3)
    await asyncio.sleep(INTERVAL * 0.2)
    assert (early.wakes, late.wakes) == (4, 4)
    # They rest again, also while nothing arrives.
    early.receive(5)
    await asyncio.sleep(INTERVAL * 0.8)
    assert (early.wakes, late.wakes) == (4, 4)
    await asyncio.sleep(INTERVAL * 0.2)
    assert (early.wakes, late.wakes) == (5, 4)


@in_virtual_time
async def test_an_interval_is_never_longer_than_50_ms() -> None:
    reader = Reader(coalescer(10_000))
    reader.receive(4)
    await asyncio.sleep(0.049)
    assert reader.wakes == 3
    await asyncio.sleep(0.0011)
    assert reader.wakes == 4


@in_virtual_time
async def test_after_a_pause_the_next_read_wakes_at_once() -> None:
    reader = Reader(coalescer(STREAMS))
    reader.receive(4)
    await asyncio.sleep(1)
    assert reader.wakes == 4
    reader.receive()
    assert reader.wakes == 5


@in_virtual_time
async def test_a_closed_coalescer_wakes_no_reader() -> None:
    shared = coalescer(STREAMS)
    reader = Reader(shared)
    reader.receive(4)
    shared.close()
    await asyncio.sleep(1)
    assert reader.wakes == 3
