"""The limit on reads with large responses: pages of histories and of lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ruvd.core.errors import Overloaded

_MAX_RUNNING = 4
_MAX_WAITING = 200


class LargeReads:
    """Lets a few large reads run at a time, because each may hold several times 4 MiB."""

    def __init__(self, max_running: int = _MAX_RUNNING, max_waiting: int = _MAX_WAITING) -> None:
        self._running = asyncio.Semaphore(max_running)
        self._max_waiting = max_waiting
        self._waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Waits until a read may run. Raises Overloaded if too many wait already."""
        if self._running.locked() and self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._waiting} reads of histories or lists are waiting already")
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._running.release()
