"""A circuit breaker for one server: after failures in a row it rejects calls for a while.

Then the circuit is half open: one call, the probe, is let through, and its result closes or opens
the circuit. A probe whose result says nothing about the server (it was cancelled, or the caller's
request was wrong) leaves the circuit half open for the next call. A probe without a result is given
up after the longest time that a call can take, so the circuit is never stuck.

It is written by hand because none of the libraries that were looked at lets just one asynchronous
call through a half-open circuit. Besides, purgatory 3.0.1 and pybreaker 1.4.1 go by the wall clock
(and pybreaker needs Tornado); purgatory and circuitbreaker 2.1.3 count a cancelled call as a
failure or a success.
"""

import time
from collections.abc import Callable

# The result of a probe usually comes within this time.
_PROBE_WAIT_SECONDS = 1.0


class Permit:
    """The permission of one call, whose result is recorded with it."""


class CircuitBreaker:
    """A circuit, open for `open_seconds` after `failures` in a row. A probe has `probe_seconds`."""

    def __init__(
        self,
        *,
        failures: int,
        open_seconds: float,
        probe_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = failures
        self._open_seconds = open_seconds
        self._probe_seconds = probe_seconds
        self._monotonic = monotonic
        self._failures = 0
        self._opened_at: float | None = None
        self._probe: Permit | None = None
        self._probe_started_at = 0.0

    @property
    def wait_seconds(self) -> float:
        """The seconds for which calls are still rejected; 0 if a call would be let through now."""
        if self._opened_at is None:
            return 0.0
        now = self._monotonic()
        wait = self._opened_at + self._open_seconds - now
        if self._probe is not None and now < self._probe_started_at + self._probe_seconds:
            return max(wait, _PROBE_WAIT_SECONDS)
        return max(wait, 0.0)

    def try_acquire(self) -> Permit | None:
        """Returns a permit for one call, or None if the call is rejected."""
        if self.wait_seconds > 0.0:
            return None
        permit = Permit()
        if self._opened_at is not None:
            self._probe, self._probe_started_at = permit, self._monotonic()
        return permit

    def is_probe(self, permit: Permit) -> bool:
        """Returns whether the circuit waits for the result of this call."""
        return permit is self._probe

    def record(self, permit: Permit, *, failed: bool | None) -> None:
        """Counts a call's result; None says nothing about the server. May be called repeatedly."""
        was_probe = self.is_probe(permit)
        if was_probe:
            self._probe = None
        if failed:
            self._failures += 1
            if was_probe or self._failures >= self._max_failures:
                self._opened_at = self._monotonic()
        elif failed is not None:
            self.reset()

    def reset(self) -> None:
        """Closes the circuit, because the server works."""
        self._failures, self._opened_at, self._probe = 0, None, None
