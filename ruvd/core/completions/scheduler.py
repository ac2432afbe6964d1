"""The engine's places: who may generate now.

Interactive completions go first. Those of a batch have a share of the places, so that chat never
waits for all of them, and an own bound that follows what the engine says it can take: it halves
when the engine asks to slow down and grows by one with every round that goes well. What nobody
waits for has a place when nothing else has or wants one.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class SlotScheduler:
    """`total` places, None for no bound; a batch may have `batch_share` of them, one at least."""

    def __init__(self, total: int | None, batch_share: float) -> None:
        self._free = math.inf if total is None else total
        self._batch_most = math.inf if total is None else max(1, int(total * batch_share))
        self._batch_limit = self._batch_most
        self._batch_running = 0
        self._interactive: deque[asyncio.Future[None]] = deque()
        self._batch: deque[asyncio.Future[None]] = deque()
        self._spare: deque[asyncio.Future[None]] = deque()
        self._running = 0
        self.narrowings = 0

    @asynccontextmanager
    async def take(self, *, batch: bool = False) -> AsyncGenerator[None, None]:
        """Have a place, once there is one: first come, first served, within each kind."""
        await self._wait(self._batch if batch else self._interactive, batch=batch)
        try:
            yield
        finally:
            self._give(batch=batch)

    @asynccontextmanager
    async def take_spare(self) -> AsyncGenerator[None, None]:
        """Have a place when nobody has or wants one; keep it for a moment only."""
        await self._wait(self._spare, batch=False)
        try:
            yield
        finally:
            self._give(batch=False)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many wait for a place: interactive completions, and those of batches."""
        return len(self._interactive), len(self._batch)

    def narrow(self, narrowings: int) -> None:
        """The engine asked a batch's completion to slow down, which began when there had been
        `narrowings`: only the first of those that ran side by side counts."""
        if narrowings == self.narrowings:
            self.narrowings += 1
            self._batch_limit = max(1, min(self._batch_limit, self._batch_running + 1) // 2)

    def widen(self) -> None:
        """A batch's completion went well."""
        self._batch_limit = min(self._batch_most, self._batch_limit + 1 / self._batch_limit)
        self._next()

    async def _wait(self, waiting: deque[asyncio.Future[None]], *, batch: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(batch=batch)
            elif turn in waiting:
                waiting.remove(turn)
            raise

    def _give(self, *, batch: bool) -> None:
        self._free += 1
        self._running -= 1
        self._batch_running -= batch
        self._next()

    def _next(self) -> None:
        """Let in whoever may go."""
        while self._free >= 1 and self._let(self._interactive):
            pass
        while self._free >= 1 and self._batch_running + 1 <= self._batch_limit:
            if not self._let(self._batch):
                break
            self._batch_running += 1
        if not self._running:
            self._let(self._spare)

    def _let(self, waiting: deque[asyncio.Future[None]]) -> bool:
        """Give a place to the first who has not been cancelled; False if there is none."""
        while waiting:
            turn = waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._free -= 1
                self._running += 1
                return True
        return False
