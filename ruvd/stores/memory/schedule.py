"""A priority queue of keys by a time that can change: a heap whose outdated entries are skipped.

It stays in order even when the clock steps back, unlike a list in the order of use.
"""

import heapq
from collections.abc import Callable

# The heap is rebuilt once outdated entries outnumber the current ones by this many.
_MAX_SURPLUS = 64


class Schedule:
    """Keys in the order of their times, then of the keys."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._times: dict[int, float] = {}

    def put(self, key: int, time: float) -> None:
        """Adds the key, or changes its time. Costs O(log n), amortised."""
        if self._times.get(key) == time:
            return
        self._times[key] = time
        heapq.heappush(self._heap, (time, key))
        if len(self._heap) > 2 * len(self._times) + _MAX_SURPLUS:
            self._heap = [(time, key) for key, time in self._times.items()]
            heapq.heapify(self._heap)

    def discard(self, key: int) -> None:
        """Removes the key if it is there."""
        self._times.pop(key, None)

    def first(
        self, count: int, accept: Callable[[int], bool], until: float = float("inf")
    ) -> list[int]:
        """Returns the earliest `count` keys that are accepted and whose time is at most `until`."""
        accepted: list[int] = []
        current: list[tuple[float, int]] = []
        while len(accepted) < count and self._heap and self._heap[0][0] <= until:
            entry = heapq.heappop(self._heap)
            time, key = entry
            # A key that got an earlier time back has two equal entries, next to each other.
            if self._times.get(key) != time or (current and current[-1] == entry):
                continue
            current.append(entry)
            if accept(key):
                accepted.append(key)
        for entry in current:
            heapq.heappush(self._heap, entry)
        return accepted
