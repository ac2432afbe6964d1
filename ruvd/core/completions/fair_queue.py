"""A queue that is fair between tenants: weighted start-time fair queueing of whole slots.

Every tenant has a first-come-first-served queue. The next slot goes to the waiting tenant with the
smallest start tag, and each slot moves that tenant's tag on by 1/weight, so that tenants that wait
get slots in proportion to their weights. A tenant that comes back starts at the present tag, so it
neither saves up slots nor waits for those that it had while others were idle.

Slots are held for different times. So a tenant that has its share of them already, by weight among
the tenants that hold or want some, goes behind those that have less. A tenant without a slot is
never behind, so nobody starves.

See Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996. A push costs O(log n) for n
tenants. So does a pop, but for the tenants that it passes over, of which each holds a slot, and for
those whose waiters are all cancelled.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

# The tenants without slots and waiters whose tags are kept. Weights as small as 0.001 make long
# tags; forgetting one lets a tenant start at the present tag.
_MAX_IDLE = 1000


@dataclass(eq=False, slots=True)
class _Tenant:
    weight: float
    tag: float = 0.0
    held: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class FairQueue:
    """The waiters of one kind, and the slots that their tenants hold."""

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self._tenants: dict[str, _Tenant] = {}
        self._heap: list[tuple[float, int, str]] = []  # an entry for each tenant that waits
        self._present = 0.0
        self._pushes = 0
        self._active_weight = 0.0  # of the tenants that hold or want slots
        self._waiting = 0
        self._idle = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, tenant: str, waiter: asyncio.Future[None]) -> None:
        """Adds a waiter behind the others of its tenant."""
        entry = self._tenants.get(tenant)
        if entry is None:
            entry = self._tenants[tenant] = _Tenant(self._weight_of(tenant))
            self._active_weight += entry.weight
        elif not (entry.held or entry.waiting):
            self._idle -= 1
            self._active_weight += entry.weight
        if not entry.waiting:
            entry.tag = max(entry.tag, self._present)
            self._add(tenant, entry)
        entry.waiting.append(waiter)
        self._waiting += 1

    def remove(self, tenant: str, waiter: asyncio.Future[None]) -> None:
        """Removes a waiter, if it is there."""
        entry = self._tenants.get(tenant)
        if entry is None or waiter not in entry.waiting:
            return
        entry.waiting.remove(waiter)
        self._waiting -= 1
        if not entry.waiting:
            self._heap = [each for each in self._heap if each[2] != tenant]
            heapq.heapify(self._heap)
            self._end_if_idle(tenant, entry)

    def pop(self, slots: float) -> asyncio.Future[None] | None:
        """Returns the next waiter, whose tenant then holds one more of so many slots, or None."""
        passed: list[tuple[float, int, str]] = []
        chosen = None
        while self._heap and chosen is None:
            first = heapq.heappop(self._heap)
            entry = self._tenants[first[2]]
            if not self._has_waiter(entry):
                self._end_if_idle(first[2], entry)
            elif entry.held < self._share(entry, slots):
                chosen = first
            else:
                passed.append(first)
        if chosen is None and passed:
            chosen = passed.pop(0)
        for each in passed:
            heapq.heappush(self._heap, each)
        return None if chosen is None else self._take(chosen)

    def release(self, tenant: str) -> None:
        """Takes back a slot that the tenant held."""
        entry = self._tenants[tenant]
        entry.held -= 1
        self._end_if_idle(tenant, entry)

    def _has_waiter(self, entry: _Tenant) -> bool:
        """Drops the waiters that are cancelled, and tells whether there are others."""
        while entry.waiting and entry.waiting[0].cancelled():
            entry.waiting.popleft()
            self._waiting -= 1
        return bool(entry.waiting)

    def _share(self, entry: _Tenant, slots: float) -> float:
        if slots == math.inf:
            return math.inf
        # A rounding error must not take a slot from a share that is a whole number.
        return math.ceil(slots * entry.weight / self._active_weight - 1e-9)

    def _take(self, chosen: tuple[float, int, str]) -> asyncio.Future[None]:
        tenant = chosen[2]
        entry = self._tenants[tenant]
        self._present = max(self._present, entry.tag)
        entry.tag += 1 / entry.weight
        entry.held += 1
        waiter = entry.waiting.popleft()
        self._waiting -= 1
        if entry.waiting:
            self._add(tenant, entry)
        return waiter

    def _add(self, tenant: str, entry: _Tenant) -> None:
        self._pushes += 1
        heapq.heappush(self._heap, (entry.tag, self._pushes, tenant))

    def _end_if_idle(self, tenant: str, entry: _Tenant) -> None:
        if entry.held or entry.waiting:
            return
        self._active_weight -= entry.weight
        self._idle += 1
        if self._idle == len(self._tenants):  # nobody waits or runs, so a new count begins
            self._tenants.clear()
            self._present = self._active_weight = 0.0
            self._idle = 0
        elif entry.tag <= self._present or self._idle > _MAX_IDLE:
            del self._tenants[tenant]
            self._idle -= 1
