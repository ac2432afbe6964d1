"""The contract of the clock."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The time. Expiry uses wall-clock time, so that it holds over a restart."""

    def now(self) -> float:
        """Returns the seconds since the epoch."""

    def monotonic(self) -> float:
        """Returns seconds that never go back, for durations."""
