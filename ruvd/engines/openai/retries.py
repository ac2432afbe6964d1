"""When a call that has failed is made again: at most so often, so soon, and so many of all.

stamina does the waiting, with back-off and jitter. All calls share a budget, because retries
that everybody makes are what keeps a server down.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import stamina
from stamina.instrumentation import set_on_retry_hooks

from ruvd.core.errors import RuvdError
from ruvd.engines.chat.retryable import Refused, may_retry

_SHARE = 0.2
_BURST = 10.0
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
_LONGEST_ASKED_SECONDS = 60.0

# Its own would log a retry's arguments, and import a logger in the event loop to do it.
set_on_retry_hooks([])


class RetryBudget:
    """A retry for every fifth call, and ten at once."""

    def __init__(self) -> None:
        self._left = _BURST

    def deposit(self) -> None:
        """A call begins."""
        self._left = min(_BURST, self._left + _SHARE)

    def take(self) -> bool:
        """Whether one more retry is in it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def attempts(
    *, retries: int, deadline: float, budget: RetryBudget
) -> AsyncIterator[stamina.Attempt]:
    """The tries of one call, the first and up to `retries` more, all before `deadline`.

    What the server asks for with Retry-After is waited for if it ends before `deadline` and is a
    minute at most: about more, the caller should decide.
    """
    left = retries

    def back_off(error: Exception) -> bool | float:
        nonlocal left
        if not isinstance(error, RuvdError) or not may_retry(error) or left == 0:
            return False
        cause = error.__cause__
        wait = cause.retry_after_seconds if isinstance(cause, Refused) else None
        if wait is not None and wait > _LONGEST_ASKED_SECONDS:
            return False
        least = _FIRST_WAIT_SECONDS if wait is None else wait
        if asyncio.get_running_loop().time() + least >= deadline or not budget.take():
            return False
        left -= 1
        # Not everybody who was told the same number comes back at the same moment.
        return True if wait is None else wait * random.uniform(1.0, 1.1)  # noqa: S311

    return stamina.retry_context(
        on=back_off,
        attempts=retries + 1,
        timeout=None,
        wait_initial=_FIRST_WAIT_SECONDS,
        wait_max=_LONGEST_WAIT_SECONDS,
        wait_jitter=_FIRST_WAIT_SECONDS,
    ).__aiter__()
