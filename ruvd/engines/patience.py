"""How long a reader waits for the parts of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import NoReturn, Self, cast

from ruvd.errors import EngineTimeout


class Patience:
    """Bounds each wait for a part: by `deadline`, of the loop's clock, and by a longest silence.

    One timer looks after all waits, because to arm one for each part costs more than the part. Use
    it as a context manager; it ends the wait and nothing else that the task does.
    """

    def __init__(self, deadline: float | None, silence_seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._silence_seconds = silence_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[object] | None = None
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
        """The deadline is at most so many seconds away."""
        soon = self._loop.time() + seconds
        if self._deadline is None or soon < self._deadline:
            self._deadline = soon
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def next(self, parts: AsyncGenerator[bytes, None]) -> bytes | None:
        """The next part; None after the last. Raises EngineTimeout, whose cause is TimeoutError
        if it was the deadline."""
        reader = cast("asyncio.Task[object]", asyncio.current_task(self._loop))
        self._since = self._loop.time()
        if self._timer is None:
            bound = self._bound()
            if bound is not None and bound <= self._since:
                self._give_up()
            if bound is not None:
                self._timer = self._loop.call_at(bound, self._look)
        cancelling = reader.cancelling()
        self._reader = reader
        try:
            return await anext(parts, None)
        except asyncio.CancelledError:
            if self._is_over and reader.uncancel() <= cancelling:
                self._give_up()
            raise
        finally:
            self._reader = None

    def _look(self) -> None:
        """End the wait if it has been too long, or look again when it may be."""
        self._timer = None
        bound = self._bound()
        if self._reader is None or bound is None:
            return  # nobody waits; the next to do so has a new timer
        if bound > self._loop.time():
            self._timer = self._loop.call_at(bound, self._look)
        else:
            self._is_over = True
            self._reader.cancel()

    def _bound(self) -> float | None:
        if self._silence_seconds is None:
            return self._deadline
        silent = self._since + self._silence_seconds
        return silent if self._deadline is None else min(silent, self._deadline)

    def _give_up(self) -> NoReturn:
        if self._deadline is not None and self._loop.time() >= self._deadline:
            raise EngineTimeout("the engine did not end its answer in time") from TimeoutError()
        raise EngineTimeout("the engine was silent for too long") from None
