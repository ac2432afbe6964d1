"""The numbered events of one completion, for any number of readers.

Gathering happens here: the last Delta grows until a reader takes it and is then sealed. So a
reader whose write is pending finds the text of many tokens in its next event, without a timer,
and every reader sees the same events under the same numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ruvd.model import CompletionEvent, Delta, Finished, Started


class EventLog:
    """Append on one side, read on the other, within one event loop."""

    def __init__(self) -> None:
        self._events: list[CompletionEvent] = []
        self._growing: list[str] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._error: BaseException | None = None

    @property
    def next_sequence(self) -> int:
        """The number that an event appended now would get."""
        return len(self._events) + bool(self._growing) + 1

    def append(self, event: Started | Finished) -> None:
        """Add an event that is complete as it is."""
        self._seal()
        self._events.append(CompletionEvent(len(self._events) + 1, event))
        self._wake()

    def append_text(self, text: str) -> None:
        """Add text to the last Delta, or begin one."""
        self._growing.append(text)
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the log: readers get what there is, then `error`, if any, is raised in them."""
        self._closed = True
        self._error = error
        self._wake()

    async def read(self, after: int = 0) -> AsyncGenerator[CompletionEvent, None]:
        """The events numbered above `after`, as they come, until the log is closed."""
        position = after
        while True:
            if position < len(self._events):
                event = self._events[position]
                position += 1
                yield event
            elif self._growing:
                self._seal()
            elif self._closed:
                if self._error is not None:
                    raise self._error
                return
            else:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def _seal(self) -> None:
        if self._growing:
            text = "".join(self._growing)
            self._growing.clear()
            self._events.append(CompletionEvent(len(self._events) + 1, Delta(text)))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
