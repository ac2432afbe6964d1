"""The clock of the machine, as the core's `Clock`.

`now` is an offset plus CLOCK_BOOTTIME, the time since the machine's start, which nobody can set
and which goes on while the machine is suspended. The offset is chosen by the wall clock once in a
boot, and is stored. So the wall clock matters only for the time while the machine is off.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from ruvd.core.ports.clock import ClockReading, Timer

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A smaller difference is no step: time passes between the readings of two clocks, and programs
# that keep the wall clock right make small corrections.
_STEP_SECONDS = 1.0
_CHECK_SECONDS = 2.0

_log = logging.getLogger("ruvd.daemon")


def read_boot_id() -> str:
    """Returns the kernel's id of the present boot, or "" if there is none. Blocks."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    """The time by CLOCK_BOOTTIME, the monotonic clock, and the timers of the running event loop."""

    def __init__(
        self,
        boot_id: str,
        *,
        wall: Callable[[], float] = time.time,
        boottime: Callable[[], float] = _boottime,
    ) -> None:
        self._boot_id = boot_id
        self._wall = wall
        self._boottime = boottime
        self._offset = wall() - boottime()
        self._wall_shift = self._last_wall_shift = 0.0

    def now(self) -> float:
        """See `Clock.now`."""
        return self._offset + self._boottime()

    def wall_shift(self) -> float:
        """See `Clock.wall_shift`."""
        shift = self._wall() - self.now()
        if abs(shift - self._wall_shift) >= _STEP_SECONDS:
            self._wall_shift = shift
        return self._wall_shift

    def wall_step(self) -> float:
        """Returns by how many seconds the wall clock was set since the last call, or 0.0.

        The first call counts from the reading that was resumed.
        """
        before, self._last_wall_shift = self._last_wall_shift, self.wall_shift()
        return self._last_wall_shift - before

    def monotonic(self) -> float:
        """Returns seconds that never go back."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back on the running event loop after this many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    def reading(self) -> ClockReading:
        """See `StoredClock.reading`."""
        return ClockReading(self._boot_id, self._offset, self.now(), self.wall_shift())

    def resume(self, stored: ClockReading | None, newest_time: float) -> None:
        """See `StoredClock.resume`. After a restart of the machine, the wall clock tells the time.

        It is logged then how long the machine was off, and whether the wall clock cannot be right.
        """
        if stored is None:
            self._warn_if_behind(self.now(), newest_time)
            return
        earliest = max(stored.now, newest_time)
        # The uptime can be another one in the same boot: in a time namespace.
        same_boot = self._boot_id and stored.boot_id == self._boot_id
        if same_boot and stored.offset_seconds + self._boottime() >= earliest:
            self._offset = stored.offset_seconds
            self._wall_shift = self._last_wall_shift = stored.wall_shift
            return
        # A wall clock that was set forward is taken to be ahead still, and one that was set back to
        # be right by now. If that is wrong, sessions expire later and not sooner.
        self._wall_shift = max(0.0, stored.wall_shift)
        wall_time = self._wall() - self._wall_shift
        now = max(earliest, wall_time)
        self._offset = now - self._boottime()
        _log.info(
            "machine restarted",
            extra={
                "seconds": round(now - earliest, 3),
                "detail": "since the store was last used; idle times include it",
            },
        )
        self._warn_if_behind(wall_time, earliest)
        self._last_wall_shift = self.wall_shift()

    def follow(self, now: float) -> None:
        """See `StoredClock.follow`."""
        self._offset = now - self._boottime()
        self._last_wall_shift = self.wall_shift()

    def _warn_if_behind(self, now: float, newest_time: float) -> None:
        if newest_time - now >= _STEP_SECONDS:
            _log.warning(
                "wall clock behind the store",
                extra={
                    "detail": "the newest stored time counts as the present",
                    "wall_clock": _utc(now + self._wall_shift),
                    "newest_stored": _utc(newest_time + self._wall_shift),
                    "seconds": round(newest_time - now, 3),
                },
            )


async def watch_wall_clock(
    clock: SystemClock,
    stepped: Callable[[], Awaitable[object]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Logs each step of the wall clock once, and calls `stepped` after it."""
    while True:
        if step := clock.wall_step():
            _log.warning(
                "wall clock set",
                extra={
                    "detail": "no session expires by it",
                    "direction": "forward" if step > 0 else "back",
                    "seconds": round(abs(step), 3),
                },
            )
            await stepped()
        await sleep(_CHECK_SECONDS)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
