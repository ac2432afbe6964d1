"""The engine's slots: which completion may generate now.

Interactive completions go first. Completions of batches have a share of the slots, so that chat
never waits for all of them. Within each kind, tenants that wait get slots by their weights
(`fair_queue`), and a tenant that waits alone gets all. Batches also have a limit that follows the
load that the engine accepts: it halves when the engine asks to slow down and grows by one with
every successful round. Background work gets a slot when no completion has or wants one.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

from ruvd.core import tenants
from ruvd.core.completions.fair_queue import FairQueue


class SlotScheduler:
    """Gives out `total` slots (None is no limit), to batches `batch_share` of them or one."""

    def __init__(
        self,
        total: int | None,
        batch_share: float,
        weight_of: Callable[[str], float] = lambda _tenant: 1.0,
    ) -> None:
        self._total = self._free = math.inf if total is None else total
        self._batch_most = math.inf if total is None else max(1, int(total * batch_share))
        self._batch_limit = self._batch_most
        self._batch_running = 0
        self._interactive = FairQueue(weight_of)
        self._batch = FairQueue(weight_of)
        self._spare: deque[asyncio.Future[None]] = deque()
        self._running = 0
        # Set while a completion has or wants a slot.
        self._wanted = asyncio.Event()
        self._unused: asyncio.Event | None = None
        self._waiting_for_engine = [0, 0]  # interactive completions, and those of batches
        self.narrowings = 0

    @asynccontextmanager
    async def take(
        self, *, batch: bool = False, tenant: str = tenants.DEFAULT
    ) -> AsyncGenerator[None, None]:
        """Waits for a slot and holds it; first come, first served, within a tenant's kind."""
        queue = self._batch if batch else self._interactive
        turn = asyncio.get_running_loop().create_future()
        self._wanted.set()
        queue.push(tenant, turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(tenant, batch=batch)
            else:
                queue.remove(tenant, turn)
            raise
        try:
            yield
        finally:
            self._release(tenant, batch=batch)

    @asynccontextmanager
    async def take_spare(self) -> AsyncGenerator[None, None]:
        """Waits until no completion has or wants a slot, and holds one. Keep it only briefly."""
        turn = asyncio.get_running_loop().create_future()
        self._spare.append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free_slot()
            elif turn in self._spare:
                self._spare.remove(turn)
            raise
        try:
            yield
        finally:
            self._free_slot()

    async def wanted(self) -> None:
        """Returns when a completion wants a slot, for the holder of a spare one."""
        await self._wanted.wait()

    async def wait_unused(self) -> None:
        """Returns when nothing holds a slot."""
        while self._running:
            self._unused = self._unused or asyncio.Event()
            await self._unused.wait()

    @contextmanager
    def count_as_waiting(self, *, batch: bool) -> Generator[None, None, None]:
        """Counts a completion as waiting while it waits for the engine to come up."""
        self._waiting_for_engine[batch] += 1
        try:
            yield
        finally:
            self._waiting_for_engine[batch] -= 1

    @property
    def waiting(self) -> tuple[int, int]:
        """The numbers of waiting completions: interactive ones, and those of batches."""
        interactive, batch = self._waiting_for_engine
        return interactive + len(self._interactive), batch + len(self._batch)

    def narrow(self, narrowings: int) -> None:
        """Halves the limit of batches, because the engine asked a completion to slow down.

        `narrowings` is the count at which that completion began. Of completions that ran at the
        same time only the first one counts.
        """
        if narrowings == self.narrowings:
            self.narrowings += 1
            self._batch_limit = max(1, min(self._batch_limit, self._batch_running + 1) // 2)

    def widen(self) -> None:
        """Raises the limit of batches, because a completion of a batch succeeded."""
        self._batch_limit = min(self._batch_most, self._batch_limit + 1 / self._batch_limit)
        self._next()

    def _release(self, tenant: str, *, batch: bool) -> None:
        self._batch_running -= batch
        (self._batch if batch else self._interactive).release(tenant)
        self._free_slot()

    def _free_slot(self) -> None:
        self._free += 1
        self._running -= 1
        self._next()
        if self._unused is not None and not self._running:
            self._unused.set()
            self._unused = None

    def _next(self) -> None:
        """Gives free slots to the completions that may have them."""
        while self._free >= 1 and self._give(self._interactive.pop(self._total)):
            pass
        while self._free >= 1 and self._batch_running + 1 <= self._batch_limit:
            if not self._give(self._batch.pop(self._batch_limit)):
                break
            self._batch_running += 1
        while self._spare and not self._running:
            turn = self._spare.popleft()
            self._wanted.clear()
            self._give(None if turn.cancelled() else turn)

    def _give(self, turn: asyncio.Future[None] | None) -> bool:
        if turn is None:
            return False
        turn.set_result(None)
        self._free -= 1
        self._running += 1
        return True
