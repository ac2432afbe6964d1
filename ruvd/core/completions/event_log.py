"""The numbered events of one completion, for any number of readers.

Deltas are gathered here. The last Delta grows until a reader takes it or another kind of event
follows (text after reasoning, another tool call); it is then sealed and never changes again. A
reader whose write to its client is pending therefore finds many tokens in its next event, without
a timer, and every reader sees the same events under the same numbers. The log is bounded in bytes:
the oldest events are dropped first. While it has readers, large deltas and Finished do not count,
so that a reader who falls behind gets all of a large answer; the answer is bounded otherwise.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from itertools import islice

from ruvd.core.errors import CompletionNotFound
from ruvd.core.model import CompletionEvent, Delta, Finished, Started, ToolCallDelta

# An allowance for the objects that hold an event; bench/streams.py measures the sum.
_EVENT_BYTES = 300
# The allowance matters little beside a delta of this size.
_LARGE_BYTES = 4096
# A delta fits a response with so many more characters, which may have four bytes each.
_MAX_DELTA_BYTES = 1 << 20
_PIECE_CHARACTERS = 1 << 18


class _Part(Enum):
    TEXT = auto()
    REASONING = auto()


class EventLog:
    """An append-only log with one writer and any number of readers, within one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_delta_bytes = min(max_bytes, _MAX_DELTA_BYTES)
        self.readers = 0
        self._large_bytes = 0
        self._events: deque[CompletionEvent] = deque()
        self._dropped = 0
        self._growing: list[str] = []
        self._growing_bytes = 0
        self._sealed_bytes = 0
        self._part: _Part | ToolCallDelta = _Part.TEXT
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._error: BaseException | None = None

    @property
    def size_bytes(self) -> int:
        """The memory that the events hold, with the Delta that is still growing."""
        return self._sealed_bytes + self._growing_bytes

    @property
    def kept_bytes(self) -> int:
        """The memory that the events of a closed log hold once it has no readers."""
        return self._excess()[1]

    @property
    def last_sequence(self) -> int:
        """The number of the last event; 0 if there is none."""
        return self._dropped + len(self._events) + bool(self._growing)

    def append(self, event: Started | Finished, sequence: int | None = None) -> None:
        """Adds a complete event. `sequence` is its number if the events before it are not here."""
        self._seal()
        if sequence is not None:
            self._dropped = sequence - 1
        self._add(event)

    def append_text(self, text: str) -> None:
        """Adds text to the last Delta, or begins a new one."""
        for piece in _pieces(text):
            self._grow(_Part.TEXT, piece, joins=self._part is _Part.TEXT)

    def append_reasoning(self, text: str) -> None:
        """Adds reasoning to the last Delta, or begins a new one."""
        for piece in _pieces(text):
            self._grow(_Part.REASONING, piece, joins=self._part is _Part.REASONING)

    def append_tool_call(self, delta: ToolCallDelta) -> None:
        """Adds arguments to the last Delta, or begins a new one."""
        last, begins = self._part, bool(delta.id or delta.name)
        joins = isinstance(last, ToolCallDelta) and last.index == delta.index and not begins
        for piece in _pieces(delta.arguments):
            self._grow(delta, piece, joins=joins)
            delta, joins = ToolCallDelta(delta.index), True

    def adopt(self, other: EventLog) -> None:
        """Takes over the events of another log, which must be closed."""
        self._events, self._dropped = other._events, other._dropped
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """Ends the log. Readers still get the events that are left, and then `error`, if any."""
        self._seal()
        self._closed = True
        self._error = error
        self._wake()

    def attach(self) -> None:
        """Counts one more reader."""
        self.readers += 1

    def detach(self) -> None:
        """Counts one reader less. After the last one the log drops what it kept for readers."""
        self.readers -= 1
        if not self.readers:
            count, self._sealed_bytes = self._excess()
            # Another log may have adopted the events, so they are not changed in place.
            self._events = deque(islice(self._events, count, None)) if count else self._events
            self._dropped += count

    async def next(self, after: int) -> CompletionEvent | None:
        """Waits for and returns the first event above the number `after`, or None at the end.

        A reader whose next events have been dropped gets `Finished` instead, as soon as the log
        has it. Raises the log's error at the end of a failed completion, and CompletionNotFound
        if events were dropped and the log was closed without `Finished` and without an error.
        """
        while True:
            if after < self._dropped and self._events and _is_finished(self._events[-1]):
                return self._events[-1]
            if self._dropped <= after < self._dropped + len(self._events):
                return self._events[after - self._dropped]
            if self._growing and after >= self._dropped:
                self._seal()
            elif self._closed:
                if self._error is not None:
                    raise self._error
                if after < self._dropped:
                    raise CompletionNotFound(
                        f"the events after {after} are no longer kept, "
                        "and the answer is not committed"
                    )
                return None
            else:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def _add(self, event: Started | Delta | Finished) -> None:
        self._events.append(CompletionEvent(self._dropped + len(self._events) + 1, event))
        size = _size(event)
        self._sealed_bytes += size
        if size > _LARGE_BYTES:
            self._large_bytes += size
        most = self._max_bytes + (self._large_bytes if self.readers else 0)
        while self._sealed_bytes > most and len(self._events) > 1:
            self._sealed_bytes -= _size(self._events.popleft().event)
            self._dropped += 1
        self._wake()

    def _grow(self, part: _Part | ToolCallDelta, piece: str, *, joins: bool) -> None:
        if not joins or self._growing_bytes > self._max_delta_bytes:
            self._seal()
        if not self._growing:
            self._part = part
        self._growing.append(piece)
        self._growing_bytes += sys.getsizeof(piece)
        self._wake()

    def _seal(self) -> None:
        if not self._growing:
            return
        text = "".join(self._growing)
        self._growing.clear()
        self._growing_bytes = 0
        match self._part:
            case _Part.TEXT:
                self._add(Delta(text=text))
            case _Part.REASONING:
                self._add(Delta(reasoning=text))
            case head:
                self._add(Delta(tool_call=replace(head, arguments=text)))

    def _excess(self) -> tuple[int, int]:
        """Returns how many events are too many without readers, and the size of the others."""
        count, size, most = 0, self._sealed_bytes, len(self._events) - 1
        while size > self._max_bytes and count < most:
            size -= _size(self._events[count].event)
            count += 1
        return count, size

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _pieces(text: str) -> Sequence[str]:
    if len(text) <= _PIECE_CHARACTERS:
        return (text,)
    starts = range(0, len(text), _PIECE_CHARACTERS)
    return [text[start : start + _PIECE_CHARACTERS] for start in starts]


def _is_finished(event: CompletionEvent) -> bool:
    return isinstance(event.event, Finished)


def _size(event: Started | Delta | Finished) -> int:
    match event:
        case Delta(text, reasoning, call):
            size = _EVENT_BYTES + sys.getsizeof(text or reasoning)
            return size + (sys.getsizeof(call.arguments) + _EVENT_BYTES if call else 0)
        case Finished():
            calls = len(event.message.tool_calls) * _EVENT_BYTES
            return _EVENT_BYTES + calls + event.message.size_bytes
        case _:
            return _EVENT_BYTES
