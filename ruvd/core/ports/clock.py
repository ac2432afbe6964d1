"""The contract of the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A pending call of `Clock.call_later`."""

    def cancel(self) -> None:
        """Drops the call. Has no effect after it was made."""


class Clock(Protocol):
    """The time. Expiry uses wall-clock time, so that it holds over a restart."""

    def now(self) -> float:
        """Returns the seconds since the epoch."""

    def monotonic(self) -> float:
        """Returns seconds that never go back, for durations."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back on the running event loop after this many seconds."""
