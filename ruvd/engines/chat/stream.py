"""The decoder of a chat completion's chunks to those of the `Engine` port, without I/O.

A chunk may have a `delta`, a `text`, or a whole `message`. A finish reason counts when the answer's
end is confirmed: by a chunk without choices and with usage (`confirmed`), by `[DONE]` or by the end
of the body, which `body` and `client` look after. Some servers send "stop" with every chunk.
"""

from collections.abc import Sequence
from typing import Any

from ruvd.core.errors import ContextTooLong, EngineUnavailable, RuvdError
from ruvd.core.model import FinishReason
from ruvd.core.ports.engine import NO_DATA, EngineChunk, EngineDone, EngineReasoning, EngineText
from ruvd.engines.chat.chunks import (
    Choice,
    Chunk,
    ChunkError,
    Delta,
    decode,
    decode_all,
    decode_usual,
    load,
    shown,
    valid_text,
)
from ruvd.engines.chat.content import (
    RepeatedText,
    SplitCharacters,
    content_parts,
    unusual_text,
)
from ruvd.engines.chat.engine_data import Fields, encode_data, fields_of
from ruvd.engines.chat.error_body import ErrorBody, error_in
from ruvd.engines.chat.errors import stream_error
from ruvd.engines.chat.finish_reasons import finish_reason, finish_word, outweighs
from ruvd.engines.chat.tool_calls import ToolCallDecoder
from ruvd.engines.chat.usage import prefill_seconds, usage_counts

# How much is kept of what a server says beside its answer.
_MAX_ASIDE = 1000


class AnswerDecoder:
    """Decodes one answer from its events: `feed` each event's data, then call `done`.

    `origin` names the server in what it needs back; with `marks_reasoning` that has its reasoning.
    """

    def __init__(self, origin: str = "", *, marks_reasoning: bool = False) -> None:
        self._origin = origin
        self._marks_reasoning = marks_reasoning
        self._tool_calls = ToolCallDecoder()
        self._fields = Fields()
        self._finish_word = ""
        self._usage: dict[str, Any] | None = None
        self._timings: dict[str, Any] | None = None
        self.begun = False
        self._message = RepeatedText()
        self._reasoning = RepeatedText()
        self._characters = SplitCharacters()
        self._aside = ""
        self.failure: Exception | None = None
        self.confirmed = False
        self.refusal = ""
        self._reasons = False

    @property
    def finished(self) -> bool:
        """Whether a finish reason has come. It counts once the answer's end is confirmed."""
        return bool(self._finish_word)

    def feed(self, data: bytes) -> list[EngineChunk]:
        """Returns the chunks in an event. Raises ChunkError, or the error in the event."""
        chunk = decode_usual(data)
        if chunk is None or self._characters.pending:
            return self.feed_all([data])
        out: list[EngineChunk] = []
        if text := chunk.only_text:
            self._add_text(text, out)
        else:
            self._take(chunk, data, out)
        return out

    def feed_all(self, events: Sequence[bytes]) -> list[EngineChunk]:
        """Returns the chunks in several events, with adjacent texts joined. Raises as `feed`; if
        chunks come before the error, they are returned, and `check` raises the error."""
        out: list[EngineChunk] = []
        try:
            self._feed_all(events, out)
        except (RuvdError, ChunkError) as error:
            if not out:
                raise
            self.failure = error
        return out

    def check(self) -> None:
        """Raises the error that came after the last chunks."""
        if self.failure is not None:
            raise self.failure

    def _feed_all(self, events: Sequence[bytes], out: list[EngineChunk]) -> None:
        chunks = decode_all(events)
        if chunks is None or self._characters.pending:
            for data in events:
                self._feed_one(data, out)
            return
        texts: list[str] = []
        for chunk, data in zip(chunks, events, strict=True):
            if text := chunk.only_text:
                texts.append(text)
                continue
            self._flush(texts, out)
            self._take(chunk, data, out)
        self._flush(texts, out)

    def _feed_one(self, data: bytes, out: list[EngineChunk]) -> None:
        chunks = decode(data)
        for chunk, own_data in chunks:
            self._take(chunk, own_data, out)
        if not chunks:
            self.note(shown(data))

    def rest(self) -> list[EngineChunk]:
        """Returns what has been held back: half a character, of which the other half never came."""
        return [EngineText("\ufffd")] if self._characters.pending else []

    def note(self, words: str) -> None:
        """Keeps what the server said beside its answer. It counts if the answer does not end."""
        if words and len(self._aside) < _MAX_ASIDE:
            self._aside = f"{self._aside}; {words}" if self._aside else words

    def fail(self, body: ErrorBody) -> None:
        """Raises the error that the server has reported."""
        raise stream_error(body, begun=self.begun)

    def done(self, *, is_complete: bool = False) -> EngineDone:
        """Returns the last chunk. Raises EngineUnavailable if the answer is not whole,
        EngineRejected if the server's content filter has ended it, ContextTooLong if it has ended
        before it began because of the context's size, or the error that the server has reported.

        An answer that came as one complete object (`is_complete`) needs no finish reason.
        """
        if not self._finish_word and not (is_complete and self.begun):
            raise self._unfinished()
        if not self.begun and "context" in self._finish_word.lower():
            raise ContextTooLong(f"the engine ended the answer with {self._finish_word!r}")
        reason = finish_reason(self._finish_word)
        self._tool_calls.check()
        has_calls = bool(self._tool_calls.calls)
        if has_calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        if reason is FinishReason.TOOL_CALLS and not has_calls:
            if not self.begun:
                raise EngineUnavailable(
                    f"the engine ended the answer with {self._finish_word!r}, but sent no tool call"
                )
            reason = FinishReason.STOP
        return EngineDone(
            reason,
            None if self._usage is None else usage_counts(self._usage, self._timings),
            prefill_seconds=prefill_seconds(self._timings),
            raw_finish_reason=self._finish_word,
            message_data=self._message_data() if has_calls else "",
            call_data=self._tool_calls.data(self._origin) if has_calls else NO_DATA,
        )

    def _message_data(self) -> str:
        """Returns what belongs to the answer as a whole."""
        data: dict[str, Any] = {"fields": self._fields.values} if self._fields.values else {}
        if self._reasons and self._marks_reasoning:
            data["reasoning"] = True  # so that no other server gets it
        return encode_data(data, self._origin)

    def _unfinished(self) -> RuvdError:
        if not self._aside:
            return EngineUnavailable("the engine's answer ended before its end")
        error = stream_error(ErrorBody(self._aside), begun=self.begun)
        if type(error) is EngineUnavailable:
            text = "the engine's answer makes no sense and ended before its end"
            return EngineUnavailable(f"{text}: {self._aside}")
        return error

    def _take(self, chunk: Chunk, data: bytes, out: list[EngineChunk]) -> None:
        before = len(out)
        if chunk.error:
            self._take_error(data)
        if chunk.choices:
            self._take_choice(chunk.choices[0], data, out)
        elif chunk.usage is None and chunk.timings is None:
            self._take_error(data)
        # Some servers send it with every chunk. The last has the totals.
        self._usage = chunk.usage or self._usage
        self._timings = chunk.timings or self._timings
        if len(out) > before:
            self.begun = True
            self.confirmed = False
        elif self._finish_word and not chunk.choices and chunk.usage is not None:
            self.confirmed = True

    def _take_choice(self, choice: Choice, data: bytes, out: list[EngineChunk]) -> None:
        before = len(out)
        if choice.error:
            self.fail(error_in({"error": choice.error}) or ErrorBody())
        word = finish_word(choice.finish_reason)
        self._add_choice(choice, is_last=bool(word), out=out)
        if len(out) == before and (text := unusual_text(load(data))):
            self._add_text(text, out)
        if word and outweighs(word, self._finish_word):
            self._finish_word = word
        self._usage = choice.usage or self._usage

    def _take_error(self, data: bytes) -> None:
        """Raises the error in an event without choices, if it reports one."""
        value = load(data)
        if body := error_in(value):
            self.fail(body)
        if isinstance(value, dict) and isinstance(words := value.get("message"), str):
            self.note(words)
        elif isinstance(value, dict) and value.get("choices"):
            self.note(shown(data))

    def _add_choice(self, choice: Choice, *, is_last: bool, out: list[EngineChunk]) -> None:
        before = len(out)
        if choice.delta is not None:
            self._add(choice.delta, out)
        if choice.text and len(out) == before:
            out.append(EngineText(choice.text))
        if choice.message is not None and len(out) == before:
            self._add_message(choice.message, is_last=is_last, out=out)
            return
        for part in out[before:]:
            if isinstance(part, EngineText):
                self._message.count(part.text)
            elif isinstance(part, EngineReasoning):
                self._reasoning.count(part.text)

    def _add(self, delta: Delta, out: list[EngineChunk], *, is_whole: bool = False) -> None:
        for part in content_parts(delta.reasoning_content or delta.reasoning, thinks=True):
            self._append(part, out)
        if delta.content:
            for part in content_parts(delta.content):
                self._append(part, out)
        if delta.refusal:
            for part in content_parts(delta.refusal):
                self._append(part, out)
                self.refusal += part.text
        if delta.tool_calls:
            out += self._tool_calls.feed(delta.tool_calls)
        if isinstance(delta.function_call, dict):
            out += self._tool_calls.feed({"index": 0, "function": delta.function_call})
        if delta.has_fields:
            fields = fields_of(delta)
            if is_whole:  # a message repeats what came before
                fields = {k: v for k, v in fields.items() if k not in self._fields.values}
            self._fields.add(fields)

    def _add_message(self, message: Delta, *, is_last: bool, out: list[EngineChunk]) -> None:
        """Adds what is new in a message, which may repeat what came before."""
        whole: list[EngineChunk] = []
        calls = (message.tool_calls, message.function_call)
        if self._tool_calls.calls:
            message.tool_calls = message.function_call = None
        self._add(message, whole, is_whole=True)
        for part in whole:
            if isinstance(part, EngineText):
                if more := self._message.more(part.text, is_last=is_last):
                    out.append(EngineText(more))
            elif isinstance(part, EngineReasoning):
                if more := self._reasoning.more(part.text, is_last=is_last):
                    out.append(EngineReasoning(more))
            else:
                out.append(part)
        message.tool_calls, message.function_call = calls

    def _append(self, part: EngineText | EngineReasoning, out: list[EngineChunk]) -> None:
        if isinstance(part, EngineText):
            if text := self._characters.join(part.text):
                out.append(EngineText(text))
        else:
            self._reasons = True
            out.append(EngineReasoning(valid_text(part.text)))

    def _flush(self, texts: list[str], out: list[EngineChunk]) -> None:
        if texts:
            self._add_text("".join(texts), out)
            texts.clear()

    def _add_text(self, text: str, out: list[EngineChunk]) -> None:
        out.append(EngineText(text))
        self._message.count(text)
        self.begun = True
        self.confirmed = False
