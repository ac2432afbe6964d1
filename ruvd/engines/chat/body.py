"""The decoder of a response's body to the chunks of an answer, whatever the body's form.

As a rule it is a stream of events. Servers that cannot stream answer with one JSON object, and some
send a JSON object a line. The first byte tells them apart, because content types are not reliable.
"""

import contextlib
from collections.abc import Sequence

from ruvd.core.errors import EngineUnavailable, RuvdError
from ruvd.core.ports.engine import EngineChunk, EngineDone
from ruvd.engines.chat.chunks import ChunkError, load, shown
from ruvd.engines.chat.error_body import ErrorBody, error_in
from ruvd.engines.chat.sse import EventTooLarge, NamedEvent, SseDecoder
from ruvd.engines.chat.stream import AnswerDecoder

_DONE = (b"[done]", b"done")
_MAX_DONE_BYTES = 32
# More than the largest answer by default, as characters may be escaped.
_MAX_PIECE_BYTES = 12 << 20
_BLANK = b" \t\r\n\xef\xbb\xbf"


class BodyDecoder:
    """Decodes one answer from the parts of a response's body. `content_type` is for errors, and
    the rest is for `AnswerDecoder`."""

    def __init__(
        self, content_type: str = "", origin: str = "", *, marks_reasoning: bool = False
    ) -> None:
        self.answer = AnswerDecoder(origin, marks_reasoning=marks_reasoning)
        self.ended = False  # after [DONE], everything is ignored
        self._content_type = content_type
        self._events = SseDecoder(_MAX_PIECE_BYTES)
        self._is_json: bool | None = None  # None until the first byte has come
        self._is_object = False
        self._parts: list[bytes] = []
        self._size = 0
        self._has_event = False

    @property
    def is_whole(self) -> bool:
        """Whether the answer's end is confirmed before the end of the body."""
        return self.ended or self.answer.confirmed

    def feed(self, part: bytes) -> list[EngineChunk]:
        """Returns the chunks in a part, with adjacent texts joined, because each chunk passes
        through every layer. Raises as `AnswerDecoder.feed`, and EventTooLarge."""
        if self._is_json is not False:
            part = self._detect(part)
        if self._is_json is not False or self.ended:
            return []
        events = self._events.feed(part)
        count = len(events)
        is_plain = self._events.was_plain and part.startswith(b"data: {")
        if is_plain and part.count(b"\n\ndata: {") == count - 1:
            self._has_event = True  # the usual part: nothing but objects
            return self.answer.feed(events[0]) if count == 1 else self.answer.feed_all(events)
        out = self._feed_events(events) if events else []
        # Some servers end with [DONE] and no blank line, and keep the connection open.
        if not self.ended and not part.endswith(b"\n\n") and _is_done(self._events.pending):
            self.ended = True
        return out

    def end(self) -> list[EngineChunk]:
        """Returns the chunks in what is left at the end of a complete body. Raises as `feed`."""
        if self.ended:
            return []
        if self._is_json is False:
            return self._feed_events(self._events.end())
        content = b"".join(self._parts).strip(_BLANK)
        return self._feed_json(content) if content else []

    def done(self) -> EngineDone:
        """Returns the last chunk. Raises as `AnswerDecoder.done`."""
        is_nothing = self._is_object and not (self.answer.begun or self.answer.finished)
        if is_nothing or (self._is_json is not None and not self._has_event):
            raise self._no_stream()
        return self.answer.done(is_complete=self._is_object)

    def _detect(self, part: bytes) -> bytes:
        """Finds out the body's form, and returns what is to be decoded as events."""
        self._parts.append(part)
        self._size += len(part)
        if self._is_json is None:
            content = b"".join(self._parts).lstrip(_BLANK)
            if not content:
                return b""
            if content[:1] == b"<":  # a page
                raise self._no_stream()
            self._is_json = content[:1] in (b"{", b"[")
            if not self._is_json:
                return b"".join(self._parts)
        if self._size > _MAX_PIECE_BYTES:
            raise EventTooLarge(f"an answer without events is longer than {_MAX_PIECE_BYTES} bytes")
        return b""

    def _no_stream(self) -> EngineUnavailable:
        kind = f"{self._content_type}, " if self._content_type else "what is "
        content = b"".join(self._parts).strip(_BLANK)
        return EngineUnavailable(
            f"the engine answered with {kind}not with a stream of events: {shown(content)}"
        )

    def _feed_events(self, events: Sequence[bytes]) -> list[EngineChunk]:
        plain: list[bytes] = []
        failed: NamedEvent | None = None
        for event in events:
            data = event
            if len(data) <= _MAX_DONE_BYTES and _is_done(data):
                self.ended = self._has_event = True
                break
            if isinstance(data, NamedEvent):
                if data.name.lower().endswith("error"):
                    failed = data
                    break
                data = bytes(data)
            if b"\n" in data:
                data = self._without_done(data)
            if data[:1] == b"{":
                plain.append(data)
            elif data := data.strip():
                plain += self._odd(data)
            if self.ended:
                break
        self._has_event = self._has_event or bool(plain)
        out = self.answer.feed_all(plain) if plain else []
        if failed is not None and self.answer.failure is None:
            self._fail(failed, out)
        return out

    def _without_done(self, data: bytes) -> bytes:
        """Returns the data without [DONE] at its end: some servers leave out the blank lines."""
        lines, _, last = data.rpartition(b"\n")
        if not _is_done(last):
            return data
        self.ended = self._has_event = True
        return lines

    def _fail(self, event: NamedEvent, out: Sequence[EngineChunk]) -> None:
        """Raises the error in an event that is named so, or leaves it to `AnswerDecoder.check` if
        chunks come before it."""
        try:
            body = error_in(load(event), always=True) or ErrorBody()
        except ChunkError:
            body = ErrorBody(event.decode(errors="replace"))
        try:
            self.answer.fail(body)
        except RuvdError as error:
            if not out:
                raise
            self.answer.failure = error

    def _odd(self, data: bytes) -> list[bytes]:
        """Returns the events in data that is no object, and keeps any other words of the server."""
        if data[:1] in (b"{", b"["):
            return [data]
        lines = data.split(b"\n")
        if len(lines) > 1:
            return [event for line in lines if line.strip() for event in self._odd(line.strip())]
        self._has_event = True
        self.answer.note(shown(data))
        return []

    def _feed_json(self, content: bytes) -> list[EngineChunk]:
        self._has_event = True
        # Several objects, one a line, are a stream, which says why it has ended.
        with contextlib.suppress(ChunkError):
            self._is_object = isinstance(load(content), dict)
        return self.answer.feed(content)


def _is_done(data: bytes) -> bool:
    return data.strip(b" \t\r\n\"'").lower() in _DONE
