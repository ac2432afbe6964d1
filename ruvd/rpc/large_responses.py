"""The limits on large responses: pages of histories and of lists.

A response takes several times its size while it is built, and twice its size until the client has
read it, which may take for ever: gRPC offers no way to end a call whose response waits for its
reader. So only a few responses are built at a time, and the sum of those that are built or unread
is bounded. Small responses need no room, because slow readers cannot hold them back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Protocol

from ruvd.core.errors import Overloaded
from ruvd.core.ports.memory import Memory, reserved

# As much as HTTP/2 lets a server send before the client reads.
SMALL_BYTES = 64 << 10
_MAX_BYTES = 12 << 20
_MAX_BUILDING = 2
_MAX_WAITING = 200
_STALL_SECONDS = 1.0


class Call(Protocol):
    """The part of gRPC's ServicerContext that is used here."""

    def add_done_callback(self, callback: Any, /) -> None:
        """Calls back when the response has been sent or the call has ended otherwise."""


class LargeResponses:
    """Admits large responses. Raises Overloaded if too many wait, or readers hold all the room."""

    def __init__(
        self,
        memory: Memory,
        *,
        max_bytes: int = _MAX_BYTES,
        max_building: int = _MAX_BUILDING,
        max_waiting: int = _MAX_WAITING,
        stall_seconds: float = _STALL_SECONDS,
    ) -> None:
        self._memory = memory
        self._room = max_bytes
        self._max_waiting = max_waiting
        self._stall_seconds = stall_seconds
        self._building = asyncio.Semaphore(max_building)
        self._waiting_to_build = 0
        self._waiting_for_room: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._last_change = time.monotonic()

    @asynccontextmanager
    async def build(self, size: int = 0) -> AsyncIterator[None]:
        """Waits until a response may be built, and counts it while the context lasts.

        A response of a known size also reserves the memory for it.
        """
        if self._waiting_to_build >= self._max_waiting:
            raise Overloaded(f"{self._waiting_to_build} reads of histories or lists wait already")
        self._waiting_to_build += 1
        try:
            await self._building.acquire()
        finally:
            self._waiting_to_build -= 1
        try:
            with reserved(self._memory, size, "a large response") if size else nullcontext():
                yield
        finally:
            self._building.release()

    async def hold(self, size: int, call: Call) -> None:
        """Waits until there is room for a response of this size, and holds it until the call ends.

        Raises Overloaded if there is no room and no large response has been read or has begun for
        a while, because the readers of those that hold the room may never read them.
        """
        if size <= SMALL_BYTES:
            return
        if self._waiting_for_room or self._room < size:
            await self._wait(size)
        else:
            self._take(size)
        call.add_done_callback(lambda _: self._release(size))

    async def _wait(self, size: int) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (size, admitted)
        if len(self._waiting_for_room) < self._max_waiting:
            self._waiting_for_room.append(waiter)
            try:
                while not (admitted.done() or self._is_stalled):
                    await asyncio.wait([admitted], timeout=self._stall_seconds)
            except asyncio.CancelledError:
                if admitted.done():
                    self._release(size)
                else:
                    self._leave(waiter)
                raise
            if admitted.done():
                return
            self._leave(waiter)
        raise Overloaded("the large responses of other calls have not been read yet")

    def _leave(self, waiter: tuple[int, asyncio.Future[None]]) -> None:
        self._waiting_for_room.remove(waiter)
        self._admit()  # the next one may need less room

    @property
    def _is_stalled(self) -> bool:
        return time.monotonic() - self._last_change >= self._stall_seconds

    def _take(self, size: int) -> None:
        self._room -= size
        self._last_change = time.monotonic()

    def _release(self, size: int) -> None:
        self._room += size
        self._last_change = time.monotonic()
        self._admit()

    def _admit(self) -> None:
        while self._waiting_for_room and self._waiting_for_room[0][0] <= self._room:
            size, admitted = self._waiting_for_room.popleft()
            self._take(size)
            admitted.set_result(None)
