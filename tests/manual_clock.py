"""A clock that a test moves by hand."""

from __future__ import annotations


class ManualClock:
    """A monotonic clock that moves only when it is told to."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def monotonic(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        self._seconds += seconds
