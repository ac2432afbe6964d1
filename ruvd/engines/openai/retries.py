"""The retries of failed calls: their back-off, and a budget that all calls share.

stamina waits, with exponential back-off and jitter. The budget is shared because unlimited retries
of many callers keep an overloaded server down.
"""

import asyncio
import random
from collections.abc import AsyncIterator

import stamina
from stamina.instrumentation import set_on_retry_hooks

from ruvd.core.errors import RuvdError
from ruvd.engines.chat.retryable import Refused, may_retry

_RETRIES_PER_CALL = 0.2
_MAX_RETRIES = 10.0
_FIRST_WAIT_SECONDS = 0.25
_MAX_WAIT_SECONDS = 5.0
_MAX_RETRY_AFTER_SECONDS = 60.0

# stamina's own hooks would log the arguments, and import a logger on the event loop to do it.
set_on_retry_hooks([])


class RetryBudget:
    """One retry for every fifth call, and at most ten saved up."""

    def __init__(self) -> None:
        self._retries = _MAX_RETRIES

    def deposit(self) -> None:
        """Adds the share of a new call."""
        self._retries = min(_MAX_RETRIES, self._retries + _RETRIES_PER_CALL)

    def withdraw(self) -> bool:
        """Takes one retry. Returns whether there was one."""
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True


def attempts(
    *, retries: int, deadline: float, budget: RetryBudget
) -> AsyncIterator[stamina.Attempt]:
    """Yields the attempts of one call: the first and up to `retries` more, all before `deadline`.

    A server's Retry-After is obeyed if it ends before `deadline` and is a minute at most. Whether
    to wait longer is the caller's decision.
    """
    retries_left = retries

    def back_off(error: Exception) -> bool | float:
        nonlocal retries_left
        if not isinstance(error, RuvdError) or not may_retry(error) or retries_left == 0:
            return False
        cause = error.__cause__
        wait = cause.retry_after_seconds if isinstance(cause, Refused) else None
        if wait is not None and wait > _MAX_RETRY_AFTER_SECONDS:
            return False
        min_wait = _FIRST_WAIT_SECONDS if wait is None else wait
        if asyncio.get_running_loop().time() + min_wait >= deadline or not budget.withdraw():
            return False
        retries_left -= 1
        # The jitter spreads callers that got the same Retry-After.
        return True if wait is None else wait * random.uniform(1.0, 1.1)  # noqa: S311

    return stamina.retry_context(
        on=back_off,
        attempts=retries + 1,
        timeout=None,
        wait_initial=_FIRST_WAIT_SECONDS,
        wait_max=_MAX_WAIT_SECONDS,
        wait_jitter=_FIRST_WAIT_SECONDS,
    ).__aiter__()
