"""The memory budget: the daemon refuses work before the kernel kills it.

Most of what the daemon holds is bounded by settings, but the product of the bounds (say, 1,000
completions of 2 MiB each) is more than a sidecar's memory limit. So the resident memory is read
several times a second. Above 90 % of the limit new calls are refused with OVERLOADED and readiness
is off, until it is below 85 %. Above 95 % the largest running completions fail with OVERLOADED.

Large things reserve the memory that they will take, because the resident memory would show it too
late: requests, answers that grow, pages and prompts of long histories. They are refused above 75 %,
so that the rest is left to small calls. docs/operations.md has the sum of the parts.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from weakref import WeakValueDictionary

from ruvd.core.errors import Overloaded, QuotaExceeded

_LARGE_SHARE = 0.75
_TIGHT_SHARE = 0.9
_RELAXED_SHARE = 0.85
_CRITICAL_SHARE = 0.95
_INTERVAL_SECONDS = 0.1
# A collection of all garbage stalls the event loop, so it is made this often at most.
_RETURN_SECONDS = 5.0
# A request's bytes, its proto, its messages, the prompt's JSON and its encoding.
_COST_OF_A_BYTE = 6
# An answer's pieces, text, events and row; a page's messages, their protos and its bytes.
_COST_OF_A_CONTENT_BYTE = 4
# The share of the limit for requests that are being received, and the number of them at least.
_RECEIVING_SHARE = 0.1
_MIN_RECEIVING = 4
_MAX_WAIT_SECONDS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM_BYTES = 128

_log = logging.getLogger("ruvd.daemon")


class MemoryBudget:
    """Admits calls as long as there is memory for them.

    `shed` fails some of the running work, and returns False if there is nothing left to fail;
    `on_change` is called when the budget becomes tight (True) and relaxed again (False).
    """

    def __init__(
        self,
        limit_bytes: int,
        max_request_bytes: int,
        *,
        shed: Callable[[], bool] = lambda: False,
        on_change: Callable[[bool], None],
        resident: Callable[[], int] | None = None,
        return_memory: Callable[[], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.is_tight = False
        self._max_receiving = max(
            _MIN_RECEIVING, int(limit_bytes * _RECEIVING_SHARE) // max_request_bytes
        )
        self._receiving = 0
        self._received = asyncio.Event()
        # By tenant, as long as a request of it is received or waits for that.
        self._shares: WeakValueDictionary[str, _Share] = WeakValueDictionary()
        self.shed = shed
        self._on_change = on_change
        self._resident = resident or resident_bytes
        self._return_memory = return_memory or _return_free_memory
        self._monotonic = monotonic
        self._next_return = 0.0
        self._reserved = 0

    @property
    def resident_bytes(self) -> int:
        """The resident memory now."""
        return self._resident()

    async def receive(self, tenant: str = "") -> "Receiving":
        """Waits until the next request may be received, which is before gRPC allocates it.

        Few large requests are received at the same time. A client that sends slowly holds up the
        others for a second at most; if it has a tenant, only those of its tenant, as half of the
        room is for others. Raises Overloaded if the memory is nearly used up, and QuotaExceeded if
        the requests of the tenant have held its half of the room for a second.
        """
        share = self._shares.setdefault(tenant, _Share()) if tenant else None
        most = self._max_receiving // 2
        if self._is_full(share, most):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MAX_WAIT_SECONDS):
                    while self._is_full(share, most):
                        self._received.clear()
                        await self._received.wait()
        if share and share.receiving >= most:
            raise QuotaExceeded(
                f"{most} other requests of the tenant are being received; try again",
                quota="receiving",
            )
        self.check()
        return Receiving(self, share)

    def receiving(self, tenant: str) -> int:
        """Returns the number of requests of a tenant that are being received."""
        share = self._shares.get(tenant)
        return share.receiving if share else 0

    def _is_full(self, share: "_Share | None", most: int) -> bool:
        if share and share.receiving >= most:
            return True
        return self._receiving >= self._max_receiving

    def count_receiving(self, change: int, share: "_Share | None" = None) -> None:
        """Counts a request whose receiving begins (1) or ends (-1). Any thread may call it."""
        self._receiving += change
        if share:
            share.receiving += change

    def wake(self) -> None:
        """Lets the next request in that waits to be received."""
        self._received.set()

    def check(self) -> None:
        """Raises Overloaded if the memory is nearly used up."""
        if self.is_tight:
            raise Overloaded(
                f"the daemon's memory is nearly used up ({self.limit_bytes} bytes, "
                "max_memory_bytes); try again"
            )

    @contextmanager
    def reserve(self, request_bytes: int) -> Generator[Callable[[], None], None, None]:
        """Holds the memory that a large request needs, and yields what gives it back earlier.

        Raises Overloaded if there is too little.
        """
        needed = request_bytes * _COST_OF_A_BYTE
        if not self._has_room(needed):
            raise Overloaded(
                f"there is no memory for a request of {request_bytes} bytes now "
                "(max_memory_bytes); try again"
            )
        self._reserved += needed

        def release() -> None:
            nonlocal needed
            self._reserved -= needed
            needed = 0

        try:
            yield release
        finally:
            release()

    def try_reserve(self, size_bytes: int) -> bool:
        """Reserves what so many bytes of content take. Returns False if there is too little."""
        needed = size_bytes * _COST_OF_A_CONTENT_BYTE
        if self.is_tight or not self._has_room(needed):
            return False
        self._reserved += needed
        return True

    def release(self, size_bytes: int) -> None:
        """Gives back what was reserved for so many bytes of content."""
        self._reserved -= size_bytes * _COST_OF_A_CONTENT_BYTE

    def _has_room(self, needed: int) -> bool:
        most = self.limit_bytes * _LARGE_SHARE - self._reserved - needed
        return self._resident() <= most or self._resident_after_return() <= most

    async def watch(self) -> None:
        """Follows the resident memory, until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_INTERVAL_SECONDS)

    def look(self) -> None:
        """Reads the resident memory, and acts on it."""
        resident = self._resident()
        relaxed = self.limit_bytes * (_RELAXED_SHARE if self.is_tight else _TIGHT_SHARE)
        if resident > relaxed:
            resident = self._resident_after_return()
        if resident > self.limit_bytes * _CRITICAL_SHARE and self.shed():
            _log.warning("running work was failed for memory", extra={"resident": resident})
        self._set_tight(resident, is_tight=resident > relaxed)

    def _resident_after_return(self) -> int:
        """Returns the resident memory, after a return of free memory if the last one is past."""
        if self._monotonic() >= self._next_return:
            self._return_memory()
            self._next_return = self._monotonic() + _RETURN_SECONDS
        return self._resident()

    def _set_tight(self, resident: int, *, is_tight: bool) -> None:
        if is_tight == self.is_tight:
            return
        self.is_tight = is_tight
        change = "memory is nearly used up" if is_tight else "there is memory again"
        _log.warning(change, extra={"resident": resident, "limit": self.limit_bytes})
        self._on_change(is_tight)


class _Share:
    """A tenant's number of requests that are being received."""

    __slots__ = ("__weakref__", "receiving")

    def __init__(self) -> None:
        self.receiving = 0


class Receiving:
    """A request that is being received, until `end` is called or its call has gone."""

    __slots__ = ("_budget", "_share")

    def __init__(self, budget: MemoryBudget, share: _Share | None) -> None:
        self._budget: MemoryBudget | None = budget
        self._share = share
        budget.count_receiving(1, share)

    def end(self) -> None:
        """Says that the request has been received."""
        if self._budget:
            self._budget.count_receiving(-1, self._share)
            self._budget.wake()
            self._budget = None

    def __del__(self) -> None:
        # The collector may run on any thread, so nobody is woken: a waiting request looks again
        # after a second at most.
        if self._budget:
            self._budget.count_receiving(-1, self._share)


def resident_bytes() -> int:
    """Returns the resident memory of this process; see proc(5), /proc/pid/statm."""
    return int(os.pread(_statm(), _STATM_BYTES, 0).split()[1]) * _PAGE_BYTES


@cache
def _statm() -> int:
    """Returns a descriptor that stays open: to open the file takes longer than to read it."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def _return_free_memory() -> None:
    """Returns free memory to the kernel: glibc keeps what lies between pieces in use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
