"""How often readers are woken: at once while they are few, together when they are many."""

from __future__ import annotations

import asyncio

from ruvd.engines.http.read_coalescing import CoalescedStream, ReadCoalescer

SECONDS = 10.0


class Reader:
    """Counts how often it was woken."""

    def __init__(self) -> None:
        self.count = 0
        self.woken = asyncio.Event()
        self.paced = CoalescedStream(self.wake)

    def wake(self) -> None:
        self.count += 1
        self.woken.set()

    async def next_wake(self) -> None:
        self.woken.clear()
        async with asyncio.timeout(SECONDS):
            await self.woken.wait()


async def test_while_few_streams_flow_each_read_wakes_its_reader_at_once() -> None:
    pace, reader = ReadCoalescer(), Reader()
    pace.flowing = 8
    for count in range(1, 20):
        pace.data_arrived(reader.paced)
        assert reader.count == count


async def test_the_first_reads_of_an_answer_are_never_held_back() -> None:
    pace, reader = ReadCoalescer(), Reader()
    pace.flowing = 64
    for count in range(1, 3):
        pace.data_arrived(reader.paced)
        assert reader.count == count
    reader.paced.begin()
    pace.data_arrived(reader.paced)
    assert reader.count == 3


async def test_the_first_read_of_an_answer_does_not_wait_for_the_end_of_the_one_before() -> None:
    pace, reader = ReadCoalescer(), Reader()
    pace.flowing = 64
    for _ in range(3):
        pace.data_arrived(reader.paced)
    assert (reader.count, reader.paced.waits) == (2, True)
    reader.paced.begin()
    pace.data_arrived(reader.paced)
    assert reader.count == 3
    pace.close()


async def test_with_many_what_comes_within_the_time_goes_on_in_one_read() -> None:
    pace = ReadCoalescer()
    pace.flowing = 64
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        for _ in range(10):
            pace.data_arrived(reader.paced)
        assert reader.count == 2
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(reader.next_wake() for reader in readers))
    assert [reader.count for reader in readers] == [3, 3, 3]
    assert asyncio.get_running_loop().time() - began > 0.01
    # Who was woken is woken again for what comes after.
    pace.data_arrived(readers[0].paced)
    await readers[0].next_wake()
    assert readers[0].count == 4


async def test_after_a_pause_the_next_read_wakes_at_once() -> None:
    pace, reader = ReadCoalescer(), Reader()
    pace.flowing = 1000
    for _ in range(3):
        pace.data_arrived(reader.paced)
    await reader.next_wake()
    reader.paced.woken -= 1.0  # as if it had been woken a second ago
    pace.data_arrived(reader.paced)
    assert reader.count == 4


async def test_a_closed_pace_wakes_nobody() -> None:
    pace, reader = ReadCoalescer(), Reader()
    pace.flowing = 64
    for _ in range(4):
        pace.data_arrived(reader.paced)
    pace.close()
    await asyncio.sleep(0.05)
    assert reader.count == 2
