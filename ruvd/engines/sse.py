"""Server-sent events, decoded as the bytes come.

Only `data` is kept: no engine that we speak to gives the other fields a meaning.
"""

from __future__ import annotations


class EventTooLarge(ValueError):
    """An event has no end within the bound."""


class SseDecoder:
    """Splits a stream into events at any cut of its bytes; LF and CRLF end a line.

    `max_event_bytes` bounds what is held of an event that has not ended.
    """

    def __init__(self, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that end in `part`. Raises EventTooLarge."""
        events: list[bytes] = []
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            if not text:
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data, self._held = [], 0
            elif text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
                self._held += len(text)
        if self._held + len(self._rest) > self._max_event_bytes:
            raise EventTooLarge(f"an event is longer than {self._max_event_bytes} bytes")
        return events
