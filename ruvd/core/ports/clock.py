"""The time, as the core asks for it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The time. Expiry is by the wall clock, so that it holds over a restart."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""
