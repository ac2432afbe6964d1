"""The chunks of a streamed chat completion, made into those of the `Engine` port. Pure.

Servers differ in how they stream tool calls, and each way is taken: no index, an index that does
not begin with 0 or is the same for several whole calls (Gemini), an id in every fragment, even a
new one each (older vLLM), no id at all, arguments as an object, a name that comes late.
`content_filter` is an error, because what came is not the model's whole answer, and so is
`abort`; a reason that nobody knows is taken for STOP.
"""

from __future__ import annotations

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
    """OpenAI's; then the field of DeepSeek and that of Moonshot."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None


class _Timings(msgspec.Struct, gc=False):
    """What llama.cpp adds; `cache_n` tokens were cached."""

    cache_n: int | None = None
    prompt_ms: float | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Error | str | None = None


class _Call:
    """A tool call that is being streamed; nothing is told before its name is known."""

    def __init__(self, number: int, id_: str) -> None:
        self.number = number
        self.id = id_
        self.name = ""
        self.held = ""

    def add(self, fragment: _ToolCall) -> list[ToolCallDelta]:
        function = fragment.function or _Function()
        arguments = function.arguments or ""
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        if self.name:
            return [ToolCallDelta(self.number, arguments=arguments)] if arguments else []
        self.id = self.id or fragment.id or ""
        self.held += arguments
        if not function.name:
            return []
        self.name = function.name
        self.id = self.id or f"call_{secrets.token_urlsafe(18)}"
        return [ToolCallDelta(self.number, self.id, self.name, self.held)]


_decoder = msgspec.json.Decoder(_Chunk)
_all_decoder = msgspec.json.Decoder(list[_Chunk])
_DONE = b"[DONE]"


class Answer:
    """One answer as it comes: `feed` each event's data, then `done`."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._finish_reason: str | None = None
        self._usage: _Usage | None = None
        self._timings: _Timings | None = None
        self._begun = False

    @property
    def finished(self) -> bool:
        """Whether the server has said why it ended; only figures may follow."""
        return self._finish_reason is not None

    def feed(self, data: bytes) -> list[EngineChunk]:
        """The chunks in an event. Raises MsgspecError, or the error that the server sent."""
        out: list[EngineChunk] = []
        self._take(_decoder.decode(data), out)
        return out

    def feed_all(self, events: Sequence[bytes]) -> list[EngineChunk]:
        """The chunks in several events, texts that follow one another as one. Raises as `feed`."""
        out: list[EngineChunk] = []
        texts: list[str] = []
        for chunk in _decode_all(events):
            choices = chunk.choices
            # Nearly all have a text and nothing else.
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
            _join(texts, out)
            self._take(chunk, out)
        self._begun = self._begun or bool(texts)
        _join(texts, out)
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
        # Some servers send it with every chunk, the last is the whole.
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.timings is not None:
            self._timings = chunk.timings

    def done(self) -> EngineDone:
        """The last chunk. Raises EngineUnavailable if the answer is not whole, and
        EngineRejected if the server's filter has ended it."""
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
            self._measured(),
            prefill_seconds=None if prompt_ms is None else prompt_ms / 1000,
        )

    def _measured(self) -> Usage | None:
        usage = self._usage
        if usage is None or usage.prompt_tokens is None:
            return None
        details = usage.prompt_tokens_details
        told = [
            None if details is None else details.cached_tokens,
            None if self._timings is None else self._timings.cache_n,
            usage.prompt_cache_hit_tokens,
            usage.cached_tokens,
        ]
        cached = next((count for count in told if count is not None), None)
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


class AnswerBytes:
    """One answer from the parts of a response's body: `feed` each; the rest is `answer`'s."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.ended = False  # [DONE] has come, after which nothing counts
        self._events = SseDecoder()

    def feed(self, part: bytes) -> list[EngineChunk]:
        """The chunks in a part; texts that came together as one, because each passes every layer
        on its own. Raises as `Answer.feed`, and EventTooLarge."""
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
    """As each by itself, in half of the time."""
    try:
        chunks = _all_decoder.decode(b"[%s]" % b",".join(events))
    except msgspec.MsgspecError:
        chunks = []
    # What is wrong is told of its event.
    return chunks if len(chunks) == len(events) else [_decoder.decode(data) for data in events]


def _join(texts: list[str], out: list[EngineChunk]) -> None:
    if texts:
        out.append(EngineText("".join(texts)))
        texts.clear()
