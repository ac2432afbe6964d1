"""Calls that are made a moment later, many at a time.

In the middle of 64 streams the SDK's code is not in the CPU's caches: the first calls of a batch
take three times as long as the later ones (50 and 18 µs), so larger batches cost less.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

_Arguments = TypeVarTuple("_Arguments")
_DELAY_SECONDS = 0.5
# A batch takes about two milliseconds, during which no token is passed on.
_BATCH = 128


class Deferred:
    """A queue of calls. The event loop adds them, and any thread may flush them."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Callable[[*_Arguments], object], *arguments: *_Arguments) -> None:
        """Makes a call after 0.5 s at most, or as soon as a batch is complete."""
        self._calls.append((call, arguments))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_SECONDS, self._end_delay)
        elif len(self._calls) == _BATCH:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Makes all calls that wait, in an empty context.

        Otherwise they would see the context of whoever flushes, or began the batch: the SDK takes
        the current span for a measurement that has none.
        """
        Context().run(self._make_calls)

    def _make_calls(self) -> None:
        while True:
            try:
                call, arguments = self._calls.popleft()
            except IndexError:
                return
            call(*arguments)

    def _end_delay(self) -> None:
        self._timer = None
        self.flush()
