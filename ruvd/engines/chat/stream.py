"""Decoders of a streamed chat completion to the chunks of the `Engine` port, without I/O.

Servers differ in how they stream tool calls, and each way is accepted: no index, an index that does
not begin with 0 or is the same for several whole calls (Gemini), an id in every fragment, even a
new one in each (older vLLM), no id at all, arguments as an object, a name that comes late. The
finish reasons `content_filter` and `abort` are errors, because the answer is not the model's whole
answer. An unknown finish reason is taken for STOP.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from ruvd.core.errors import EngineRejected, EngineUnavailable
from ruvd.core.model import FinishReason, ToolCallDelta, Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineReasoning, EngineText
from ruvd.engines.chat.errors import Error, stream_error
from ruvd.engines.chat.sse import SseDecoder

_FINISH_REASONS = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
_FAILURES = {"error", "abort", "insufficient_system_resource"}


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Token counts: OpenAI's fields, then one of DeepSeek's and one of Moonshot's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None


class _Timings(msgspec.Struct, gc=False):
    """The timings that llama.cpp adds. `cache_n` tokens of the prompt were cached."""

    cache_n: int | None = None
    prompt_ms: float | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Error | str | None = None


class _Call:
    """A tool call that is being streamed. Its first delta waits until its name is known."""

    def __init__(self, number: int, id_: str) -> None:
        self.number = number
        self.id = id_
        self.name = ""
        self.arguments = ""

    def add(self, fragment: _ToolCall) -> list[ToolCallDelta]:
        function = fragment.function or _Function()
        arguments = function.arguments or ""
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        if self.name:
            return [ToolCallDelta(self.number, arguments=arguments)] if arguments else []
        self.id = self.id or fragment.id or ""
        self.arguments += arguments
        if not function.name:
            return []
        self.name = function.name
        self.id = self.id or f"call_{secrets.token_urlsafe(18)}"
        return [ToolCallDelta(self.number, self.id, self.name, self.arguments)]


_decoder = msgspec.json.Decoder(_Chunk)
_all_decoder = msgspec.json.Decoder(list[_Chunk])
_DONE = b"[DONE]"


class AnswerDecoder:
    """Decodes one answer from its events: `feed` each event's data, then call `done`."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None
        self._timings: _Timings | None = None
        self._begun = False

    @property
    def finished(self) -> bool:
        """Whether the finish reason has come. Only usage and timings may follow."""
        return self._finish_reason is not None

    def feed(self, data: bytes) -> list[EngineChunk]:
        """Returns the chunks in an event. Raises MsgspecError, or the error in the event."""
        out: list[EngineChunk] = []
        self._take(_decoder.decode(data), out)
        return out

    def feed_all(self, events: Sequence[bytes]) -> list[EngineChunk]:
        """Returns the chunks in several events, with adjacent texts joined. Raises as `feed`."""
        out: list[EngineChunk] = []
        texts: list[str] = []
        for chunk in _decode_all(events):
            choices = chunk.choices
            # The fast path: nearly all chunks have a text and nothing else.
            if choices and chunk.error is None and chunk.usage is None and chunk.timings is None:
                choice = choices[0]
                delta = choice.delta
                if (
                    delta is not None
                    and delta.content
                    and not choice.finish_reason
                    and not delta.tool_calls
                    and not delta.reasoning_content
                    and not delta.reasoning
                ):
                    texts.append(delta.content)
                    continue
            self._begun = self._begun or bool(texts)
            _flush(texts, out)
            self._take(chunk, out)
        self._begun = self._begun or bool(texts)
        _flush(texts, out)
        return out

    def _take(self, chunk: _Chunk, out: list[EngineChunk]) -> None:
        if chunk.error is not None:
            error = Error(message=chunk.error) if isinstance(chunk.error, str) else chunk.error
            raise stream_error(error, begun=self._begun)
        if chunk.choices:
            choice = chunk.choices[0]
            if choice.delta is not None:
                self._add(choice.delta, out)
                self._begun = self._begun or bool(out)
            if choice.finish_reason:
                self._finish_reason = choice.finish_reason
        # Some servers send it with every chunk. The last has the totals.
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.timings is not None:
            self._timings = chunk.timings

    def done(self) -> EngineDone:
        """Returns the last chunk. Raises EngineUnavailable if the answer is not whole, and
        EngineRejected if the server's content filter has ended it."""
        reason = self._finish_reason
        if reason is None:
            raise EngineUnavailable("the engine's answer ended before its end")
        if reason == "content_filter":
            raise EngineRejected("the engine's content filter has ended the answer")
        if reason in _FAILURES:
            raise EngineUnavailable(f"the engine ended the answer with {reason!r}")
        if not all(call.name for call in self._calls):
            raise EngineUnavailable("the engine's answer makes no sense: a tool call has no name")
        finish_reason = _FINISH_REASONS.get(reason, FinishReason.STOP)
        if self._calls and finish_reason is FinishReason.STOP:
            finish_reason = FinishReason.TOOL_CALLS
        prompt_ms = self._timings.prompt_ms if self._timings else None
        return EngineDone(
            finish_reason,
            self._usage_counts(),
            prefill_seconds=None if prompt_ms is None else prompt_ms / 1000,
        )

    def _usage_counts(self) -> Usage | None:
        usage = self._usage
        if usage is None or usage.prompt_tokens is None:
            return None
        details = usage.prompt_tokens_details
        counts = [
            None if details is None else details.cached_tokens,
            None if self._timings is None else self._timings.cache_n,
            usage.prompt_cache_hit_tokens,
            usage.cached_tokens,
        ]
        cached = next((count for count in counts if count is not None), None)
        return Usage(usage.prompt_tokens, cached, usage.completion_tokens or 0)

    def _add(self, delta: _Delta, out: list[EngineChunk]) -> None:
        if reasoning := delta.reasoning_content or delta.reasoning:
            out.append(EngineReasoning(reasoning))
        if delta.content:
            out.append(EngineText(delta.content))
        if delta.tool_calls:
            for fragment in delta.tool_calls:
                out += self._call(fragment).add(fragment)

    def _call(self, fragment: _ToolCall) -> _Call:
        """Returns the call that a fragment belongs to, a new one if the fragment starts it."""
        named = bool(fragment.function and fragment.function.name)
        if fragment.index is not None:
            call = self._by_index.get(fragment.index)
            other = bool(call and call.name and fragment.id and fragment.id != call.id)
            starts = call is None or (named and other)
        elif fragment.id:
            call = next((known for known in self._calls if known.id == fragment.id), None)
            starts = call is None and (named or not self._calls)
            call = call or (self._calls[-1] if self._calls else None)
        else:
            call = self._calls[-1] if self._calls else None
            starts = call is None or (named and bool(call.name))
        if call is None or starts:
            call = _Call(len(self._calls), fragment.id or "")
            self._calls.append(call)
        if fragment.index is not None:
            self._by_index[fragment.index] = call
        return call


class BodyDecoder:
    """Decodes one answer from the parts of a response's body. The result is in `answer`."""

    def __init__(self) -> None:
        self.answer = AnswerDecoder()
        self.ended = False  # after [DONE], everything is ignored
        self._events = SseDecoder()

    def feed(self, part: bytes) -> list[EngineChunk]:
        """Returns the chunks in a part, with adjacent texts joined, because each chunk passes
        through every layer. Raises as `AnswerDecoder.feed`, and EventTooLarge."""
        events = self._events.feed(part)
        if self.ended or not events:
            return []
        if _DONE in events:
            self.ended = True
            del events[events.index(_DONE) :]
        if len(events) == 1:
            return self.answer.feed(events[0])
        return self.answer.feed_all(events)


def _decode_all(events: Sequence[bytes]) -> Sequence[_Chunk]:
    """Decodes events as one array, which takes half the time of decoding each by itself."""
    try:
        chunks = _all_decoder.decode(b"[%s]" % b",".join(events))
    except msgspec.MsgspecError:
        chunks = []
    # If this fails, decoding one by one raises the error of the event that is wrong.
    return chunks if len(chunks) == len(events) else [_decoder.decode(data) for data in events]


def _flush(texts: list[str], out: list[EngineChunk]) -> None:
    if texts:
        out.append(EngineText("".join(texts)))
        texts.clear()
