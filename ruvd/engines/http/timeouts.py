"""The timeouts of one request: for each read, and for all of it.

`asyncio.timeout` around each read would set a timer for each token, which costs more than reading
it. Here one timer serves all reads of a request. Measured together with smaller changes, 64 streams
of 10 ms a token went from 16.6 to 15.2 CPU seconds per 1,000 streams (bench/README.md).
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NoReturn, Self, TypeVar, cast

from ruvd.core.errors import EngineTimeout

T = TypeVar("T")


class ReadTimeout:
    """Limits each read to `read_seconds`, and all of them to a `deadline` of the loop's clock; None
    is no limit. It is a context manager for one task, which reads by `wait`. Only a read is
    interrupted, nothing else that the task does."""

    def __init__(self, deadline: float | None, read_seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._full_deadline = deadline
        self._read_seconds = read_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._reader: asyncio.Task[object] | None = None
        self._read_due: float | None = None
        self._is_expired = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def shorten(self, seconds: float | None) -> None:
        """Moves the deadline to `seconds` from now if it is later, from the next read on. None
        restores the first deadline."""
        if seconds is None:
            self._deadline = self._full_deadline
            return
        deadline = self._loop.time() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline = deadline

    async def wait(
        self, read: Callable[[], Awaitable[T]], *, first_read_extra_seconds: float = 0.0
    ) -> T:
        """Returns the result of `read`, which may take `first_read_extra_seconds` longer. Raises
        EngineTimeout, whose cause is TimeoutError if the deadline has passed."""
        reader = cast("asyncio.Task[object]", asyncio.current_task(self._loop))
        now = self._loop.time()
        if self._read_seconds is not None:
            self._read_due = now + self._read_seconds + first_read_extra_seconds
        due = self._due()
        if due is not None:
            if due <= now:
                self._raise_timeout()
            # The timer ignores the extra time and checks again, so the next read can use it too.
            due = min(due, now + self._read_seconds) if self._read_seconds else due
            if self._timer is None or due < self._timer_due:
                self._set_timer(due)
        cancelling = reader.cancelling()
        self._reader = reader
        try:
            return await read()
        except asyncio.CancelledError:
            if self._is_expired and reader.uncancel() <= cancelling:
                self._raise_timeout()
            raise
        finally:
            self._reader = None

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._check)

    def _check(self) -> None:
        """Interrupts the read if it is due, or sets the timer for when it is."""
        self._timer = None
        due = self._due()
        if self._reader is None or due is None:
            return  # the next read sets a timer
        if due > self._loop.time():
            self._set_timer(due)
        else:
            self._is_expired = True
            self._reader.cancel()

    def _due(self) -> float | None:
        """Returns when the current read times out, None for never."""
        if self._read_due is None or self._deadline is None:
            return self._deadline if self._read_due is None else self._read_due
        return min(self._read_due, self._deadline)

    def _raise_timeout(self) -> NoReturn:
        if self._deadline is not None and self._loop.time() >= self._deadline:
            raise EngineTimeout("the engine did not end its answer in time") from TimeoutError()
        raise EngineTimeout("the engine was silent for too long") from None
