"""An incremental decoder of server-sent events.

Of the fields beside `data`, only the event's name is decoded, because some servers mark errors by
it. It is written by hand because httpx-sse 0.4.3 decodes line by line and does not limit an event's
size. A part with one event of 150 bytes takes it 1.3 µs of CPU time, and this decoder 0.7 µs.
"""

_MAX_PENDING_BYTES = 64
_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event is longer than the limit."""


class NamedEvent(bytes):
    """The data of an event that has a name."""

    name = ""


class SseDecoder:
    """Splits a stream into events, wherever its bytes are cut. LF, CRLF and CR end a line.

    `max_event_bytes` limits the buffer of an event that has not ended.
    """

    def __init__(self, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        self.was_plain = False  # the last part was whole events of one line each
        self._max_event_bytes = max_event_bytes
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = ""
        self._has_line = False
        self._follows_cr = False

    def feed(self, part: bytes) -> list[bytes]:
        """Returns the data of the events that end in `part`. Raises EventTooLarge."""
        self.was_plain = self._is_plain(part)
        if self.was_plain:
            # As a rule, servers send whole events of one line each.
            return part[6:-2].split(b"\n\ndata: ")
        events: list[bytes] = []
        part = self._with_line_feeds(part)
        self._buffered.append(part)
        self._buffered_bytes += len(part)
        if b"\n" in part:  # otherwise a long line would be joined again for each part
            *lines, unfinished = b"".join(self._buffered).split(b"\n")
            self._buffered, self._buffered_bytes = [unfinished], len(unfinished)
            for line in lines:
                self._take(line, events)
        if self._data_bytes + self._buffered_bytes > self._max_event_bytes:
            raise EventTooLarge(f"an event is longer than {self._max_event_bytes} bytes")
        return events

    def end(self) -> list[bytes]:
        """Returns the data of the last event, which may lack its blank line."""
        return self.feed(b"\n\n")

    @property
    def pending(self) -> bytes:
        """The data of the event that has not ended, if it is short."""
        if self._data_bytes + self._buffered_bytes > _MAX_PENDING_BYTES:
            return b""
        line = b"".join(self._buffered)
        lines = [*self._data, _data(line)] if line.startswith(b"data:") else self._data
        return b"\n".join(lines)

    def _is_plain(self, part: bytes) -> bool:
        """Returns whether the part is whole events of one line each, and nothing is buffered."""
        return (
            not self._buffered_bytes
            and not self._data
            and not (self._name or self._follows_cr)
            and part.startswith(b"data: ")
            and part.endswith(b"\n\n")
            and b"\r" not in part
            and part.count(b"\n") == 2 * (part.count(b"\n\ndata: ") + 1)
            and len(part) <= self._max_event_bytes
        )

    def _with_line_feeds(self, part: bytes) -> bytes:
        """Returns the part with LF for each end of a line, also for a CRLF that is cut in two."""
        if self._follows_cr and part:
            part = part.removeprefix(b"\n")
        self._follows_cr = part.endswith(b"\r") or (self._follows_cr and not part)
        return part.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in part else part

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not self._has_line:
            self._has_line = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(self._event())
            self._data, self._data_bytes, self._name = [], 0, ""
        elif line.startswith(b"data:"):
            self._data.append(_data(line))
            self._data_bytes += len(line)
        elif line.startswith(b"event:"):
            self._name = line[6:].decode(errors="replace").strip()

    def _event(self) -> bytes:
        data = b"\n".join(self._data)
        if not self._name:
            return data
        event = NamedEvent(data)
        event.name = self._name
        return event


def _data(line: bytes) -> bytes:
    return line[5:].removeprefix(b" ")
