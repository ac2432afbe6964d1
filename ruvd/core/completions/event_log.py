"""The numbered events of one completion, for any number of readers.

Gathering happens here: the last Delta grows until a reader takes it or something else comes (text
after reasoning, another tool call), and is then sealed. So a reader whose write is pending finds
many tokens in its next event, without a timer, and every reader sees the same events under the
same numbers. What is kept is bounded in bytes:
the oldest events fall off first.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import replace
from enum import Enum, auto

from ruvd.core.errors import CompletionNotFound
from ruvd.core.model import CompletionEvent, Delta, Finished, Started, ToolCallDelta

# An allowance for the objects that hold an event; bench/streams.py shows the sum.
_EVENT_BYTES = 300


class _Part(Enum):
    TEXT = auto()
    REASONING = auto()


class EventLog:
    """Append on one side, read on the other, within one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._events: deque[CompletionEvent] = deque()
        self._dropped = 0
        self._growing: list[str] = []
        self._part: _Part | ToolCallDelta = _Part.TEXT
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._error: BaseException | None = None
        self.size_bytes = 0

    @property
    def last_sequence(self) -> int:
        """The number of the last event."""
        return self._dropped + len(self._events) + bool(self._growing)

    def append(self, event: Started | Finished, sequence: int | None = None) -> None:
        """Add an event that is complete as it is; `sequence` is given where events before it
        are known to be gone."""
        self._seal()
        if sequence is not None:
            self._dropped = sequence - 1
        self._keep(event)

    def append_text(self, text: str) -> None:
        """Add text to the last Delta, or begin one."""
        self._grow(_Part.TEXT, text, joins=self._part is _Part.TEXT)

    def append_reasoning(self, text: str) -> None:
        """Add reasoning to the last Delta, or begin one."""
        self._grow(_Part.REASONING, text, joins=self._part is _Part.REASONING)

    def append_tool_call(self, delta: ToolCallDelta) -> None:
        """Add arguments to the last Delta, or begin one."""
        last, begins = self._part, bool(delta.id or delta.name)
        joins = isinstance(last, ToolCallDelta) and last.index == delta.index and not begins
        self._grow(delta, delta.arguments, joins=joins)

    def adopt(self, other: EventLog) -> None:
        """Have the events of another log, which has ended."""
        self._events, self._dropped = other._events, other._dropped
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the log: readers get what there is, then `error`, if any, is raised in them."""
        self._seal()
        self._closed = True
        self._error = error
        self._wake()

    async def next(self, after: int) -> CompletionEvent | None:
        """The first event above the number `after`, once it is there; None when the log is closed
        and has no more.

        Where events have fallen off, a reader gets Finished if the completion has it, and
        CompletionNotFound otherwise.
        """
        while True:
            if after < self._dropped:
                after = self._first_left(after)
            if after < self._dropped + len(self._events):
                return self._events[after - self._dropped]
            if self._growing:
                self._seal()
            elif self._closed:
                if self._error is not None:
                    raise self._error
                return None
            else:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def _first_left(self, position: int) -> int:
        """Where a reader goes on whose next events have fallen off."""
        if self._events and isinstance(self._events[-1].event, Finished):
            return self._events[-1].sequence - 1
        raise CompletionNotFound(
            f"the events after {position} are no longer kept, and the answer is not committed"
        )

    def _keep(self, event: Started | Delta | Finished) -> None:
        self._events.append(CompletionEvent(self._dropped + len(self._events) + 1, event))
        self.size_bytes += _size(event)
        while self.size_bytes > self._max_bytes and len(self._events) > 1:
            self.size_bytes -= _size(self._events.popleft().event)
            self._dropped += 1
        self._wake()

    def _grow(self, part: _Part | ToolCallDelta, piece: str, *, joins: bool) -> None:
        if not joins:
            self._seal()
        if not self._growing:
            self._part = part
        self._growing.append(piece)
        self._wake()

    def _seal(self) -> None:
        if not self._growing:
            return
        grown = "".join(self._growing)
        self._growing.clear()
        match self._part:
            case _Part.TEXT:
                self._keep(Delta(text=grown))
            case _Part.REASONING:
                self._keep(Delta(reasoning=grown))
            case head:
                self._keep(Delta(tool_call=replace(head, arguments=grown)))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _size(event: Started | Delta | Finished) -> int:
    """What an event holds in memory."""
    match event:
        case Delta(text, reasoning, call):
            size = _EVENT_BYTES + sys.getsizeof(text or reasoning)
            return size + (sys.getsizeof(call.arguments) + _EVENT_BYTES if call else 0)
        case Finished():
            calls = len(event.message.tool_calls) * _EVENT_BYTES
            return _EVENT_BYTES + calls + event.message.size_bytes
        case _:
            return _EVENT_BYTES
