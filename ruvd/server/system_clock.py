"""The clock of the machine, as the core's `Clock`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ruvd.core.ports.clock import Timer


class SystemClock:
    """The machine's wall clock, its monotonic clock, and the timers of the running event loop."""

    def now(self) -> float:
        """Returns the seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Returns seconds that never go back."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back on the running event loop after this many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback)
