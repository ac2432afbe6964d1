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
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that end in `part`. Raises EventTooLarge."""
        if self._is_plain(part):
            # What servers send, as a rule: whole events of one line each.
            return part[6:-2].split(b"\n\ndata: ")
        events: list[bytes] = []
        self._rest.append(part)
        self._rest_bytes += len(part)
        if b"\n" in part:  # joined only then, however many parts a line comes in
            *lines, rest = b"".join(self._rest).split(b"\n")
            self._rest, self._rest_bytes = [rest], len(rest)
            for line in lines:
                self._take(line.removesuffix(b"\r"), events)
        if self._data_bytes + self._rest_bytes > self._max_event_bytes:
            raise EventTooLarge(f"an event is longer than {self._max_event_bytes} bytes")
        return events

    def _is_plain(self, part: bytes) -> bool:
        """Whether nothing is held, and each line of the part is data or an event's end."""
        return (
            not self._rest_bytes
            and not self._data
            and part.startswith(b"data: ")
            and part.endswith(b"\n\n")
            and b"\r" not in part
            and part.count(b"\n") == 2 * (part.count(b"\n\ndata: ") + 1)
            and len(part) <= self._max_event_bytes
        )

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._data_bytes = [], 0
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._data_bytes += len(line)
