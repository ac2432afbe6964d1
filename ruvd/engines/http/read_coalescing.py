"""How often the readers of many streams are woken.

What a token costs between the engine's socket and the caller's is mostly waking: its reader, the
reader of its event log, gRPC's threads. A network card gathers interrupts under load for that
reason, and so does this. While few streams flow, whatever comes wakes its reader at once. With
more, a stream's reads are so far apart that there are about `_READS_PER_SECOND` in all, at most
`_LONGEST_SECONDS` each, and tokens that come meanwhile go on together. The first reads of an
answer, its end and its failure are never held back. What it gains: bench/README.md.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

_FEW = 8
_READS_PER_SECOND = 2000
_LONGEST_SECONDS = 0.030
# The role and the first token.
_FIRST_READS = 2
# Those that are due within it are woken together.
_TICK_SECONDS = 0.002


class CoalescedStream:
    """One stream, whose reader `wake` wakes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.reads = 0
        self.woken = 0.0
        self.waits = False

    def begin(self) -> None:
        """The next answer comes."""
        self.reads, self.woken = 0, 0.0


class ReadCoalescer:
    """Wakes the readers of one server's streams; `flowing` is how many are in mid-answer."""

    def __init__(self) -> None:
        self.flowing = 0
        self._waiting: list[tuple[float, int, CoalescedStream]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def data_arrived(self, stream: CoalescedStream) -> None:
        """Something has come: wake the reader now, or when it is due."""
        if self.flowing <= _FEW:
            stream.wake()
        elif not stream.waits or stream.reads < _FIRST_READS:
            # What waits may be the end of the connection's last answer.
            loop = asyncio.get_running_loop()
            now = loop.time()
            due = stream.woken + min(self.flowing / _READS_PER_SECOND, _LONGEST_SECONDS)
            if due <= now or stream.reads < _FIRST_READS:
                self._wake(stream, now)
            else:
                stream.waits = True
                heapq.heappush(self._waiting, (due, next(self._numbers), stream))
                if self._timer is None:
                    self._timer = loop.call_at(max(due, now + _TICK_SECONDS), self._tick)

    def close(self) -> None:
        """Wake nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            self._wake(heapq.heappop(self._waiting)[2], now)
        self._timer = None
        if self._waiting:
            due = max(self._waiting[0][0], now + _TICK_SECONDS)
            self._timer = loop.call_at(due, self._tick)

    def _wake(self, stream: CoalescedStream, now: float) -> None:
        stream.reads += 1
        stream.woken = now
        stream.waits = False
        stream.wake()
