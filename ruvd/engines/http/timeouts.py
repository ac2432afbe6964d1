"""How long a caller waits for the head of an answer, and for its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NoReturn, Self, TypeVar, cast

from ruvd.core.errors import EngineTimeout

T = TypeVar("T")


class ReadTimeout:
    """Bounds each wait: by `deadline`, of the loop's clock, and by a longest silence.

    One timer looks after all waits, because to arm one for each part costs more than the part. Use
    it as a context manager; it ends the wait and nothing else that the task does.
    """

    def __init__(self, deadline: float | None, silence_seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._silence_seconds = silence_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._waiter: asyncio.Task[object] | None = None
        self._since = 0.0
        self._is_over = False

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

    def shorten(self, seconds: float) -> None:
        """The deadline is at most so many seconds away, from the next wait on."""
        soon = self._loop.time() + seconds
        if self._deadline is None or soon < self._deadline:
            self._deadline = soon

    async def wait(
        self, begin: Callable[[], Awaitable[T]], *, first_read_extra_seconds: float = 0.0
    ) -> T:
        """What comes of `begin`, which may be silent so much longer. Raises EngineTimeout, whose
        cause is TimeoutError if it was the deadline."""
        waiter = cast("asyncio.Task[object]", asyncio.current_task(self._loop))
        now = self._loop.time()
        self._since = now + first_read_extra_seconds
        bound = self._bound()
        if bound is not None:
            if bound <= now:
                self._give_up()
            # Where the wait may be longer the timer looks twice, and need not be set anew for the
            # next, which may not.
            bound = min(bound, now + self._silence_seconds) if self._silence_seconds else bound
            if self._timer is None or bound < self._due:
                self._arm(bound)
        cancelling = waiter.cancelling()
        self._waiter = waiter
        try:
            return await begin()
        except asyncio.CancelledError:
            if self._is_over and waiter.uncancel() <= cancelling:
                self._give_up()
            raise
        finally:
            self._waiter = None

    def _arm(self, bound: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = bound
        self._timer = self._loop.call_at(bound, self._look)

    def _look(self) -> None:
        """End the wait if it has been too long, or look again when it may be."""
        self._timer = None
        bound = self._bound()
        if self._waiter is None or bound is None:
            return  # nobody waits; the next to do so has a new timer
        if bound > self._loop.time():
            self._arm(bound)
        else:
            self._is_over = True
            self._waiter.cancel()

    def _bound(self) -> float | None:
        if self._silence_seconds is None:
            return self._deadline
        silent = self._since + self._silence_seconds
        return silent if self._deadline is None else min(silent, self._deadline)

    def _give_up(self) -> NoReturn:
        if self._deadline is not None and self._loop.time() >= self._deadline:
            raise EngineTimeout("the engine did not end its answer in time") from TimeoutError()
        raise EngineTimeout("the engine was silent for too long") from None
