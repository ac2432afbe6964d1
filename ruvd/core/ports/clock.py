"""The contracts of the clock, and its reading as a store keeps it."""

from collections.abc import Callable
from typing import Protocol

from ruvd.core.values import value


class Timer(Protocol):
    """A pending call of `Clock.call_later`."""

    def cancel(self) -> None:
        """Drops the call. Has no effect after it was made."""


class Clock(Protocol):
    """The time. All times of sessions, stored ones included, are times of `now`.

    The wall clock may be set forward or back while sessions are idle, so that it cannot measure
    how long they are. `now` begins with the wall clock's time and is never set.
    """

    def now(self) -> float:
        """Returns the seconds since the epoch by a clock that is never set.

        It counts the time in which the machine is suspended, and goes on over a restart of the
        daemon once the store that keeps its reading is open.
        """

    def wall_shift(self) -> float:
        """Returns the seconds by which the wall clock is ahead of `now`; negative if behind.

        It changes only when the wall clock is set. Added to a time of `now`, it gives the time for
        clients, which know only the wall clock.
        """

    def monotonic(self) -> float:
        """Returns seconds that never go back, for durations within the process."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back on the running event loop after this many seconds."""


@value(frozen=True, slots=True)
class ClockReading:
    """A reading that a store keeps, so that the clock of the next process goes on from it.

    `offset_seconds` is `now` less the machine's uptime. It means something only in the boot with
    the id `boot_id`, which is empty if the boot is unknown.
    """

    boot_id: str
    offset_seconds: float
    now: float
    wall_shift: float


class StoredClock(Protocol):
    """A clock that goes on from the reading that a store has kept."""

    def now(self) -> float:
        """See `Clock.now`."""

    def reading(self) -> ClockReading:
        """Returns the present reading."""

    def resume(self, stored: ClockReading | None, newest_time: float) -> None:
        """Makes `now` go on from the reading, which is None if the store has none yet.

        `newest_time` is the newest time in the store. With a reading, `now` is not before it. The
        store calls this, on any thread, whenever it opens its data.
        """

    def follow(self, now: float) -> None:
        """Makes `now` the time of another clock, which several daemons share.

        The store calls this when it has connected to the server that has that clock.
        """
