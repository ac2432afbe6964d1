"""The answer of a chat completion, as a whole or in chunks."""

import time
from typing import Any

from ruvd.core.model import (
    CompletionEvent,
    Delta,
    Finished,
    FinishReason,
    ToolCall,
    Usage,
)
from ruvd.http.openai.messages import to_openai

# A partial answer that was kept when its completion was cancelled is not complete.
FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CANCELLED: "length",
}


def usage(counted: Usage | None) -> dict[str, Any] | None:
    """Returns the token counts; None if the engine did not report them."""
    if counted is None:
        return None
    cached = counted.cached_tokens
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
    }


class ChatAnswer:
    """Writes one answer. `id` is that of the completion, and `model` what has answered.

    With `counts` every chunk has a usage, which is null until the last one.
    """

    def __init__(self, completion_id: str, model: str, *, counts: bool = False) -> None:
        self._head: dict[str, Any] = {
            "id": completion_id, "created": int(time.time()), "model": model,
        }  # fmt: skip
        if counts:
            self._head["usage"] = None
        self._text = 0  # characters that have been sent
        self._reasoning = 0
        self._arguments: list[int] = []  # by the call's number

    def whole(self, finished: Finished) -> dict[str, Any]:
        """Returns the response."""
        choice = {
            "index": 0,
            "message": to_openai(finished.message),
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finished.finish_reason],
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(finished.usage),
        }

    def first(self) -> dict[str, Any]:
        """Returns the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self, event: CompletionEvent) -> list[dict[str, Any]]:
        """Returns the chunks of an event."""
        match event.event:
            case Delta() as delta:
                return [self._delta(delta)]
            case Finished() as finished:
                reason = FINISH_REASONS[finished.finish_reason]
                return [*self._missed(finished), self._chunk({}, reason)]
            case _:
                return []

    def last(self, counted: Usage | None) -> dict[str, Any]:
        """Returns the chunk with the usage."""
        chunk = self._chunk({})
        return chunk | {"choices": [], "usage": usage(counted)}

    def _delta(self, delta: Delta) -> dict[str, Any]:
        call = delta.tool_call
        if call is not None:
            if call.index == len(self._arguments):
                self._arguments.append(0)
            if call.index < len(self._arguments):
                self._arguments[call.index] += len(call.arguments)
            return self._call(call.index, call.arguments, call.id, call.name)
        if delta.reasoning:
            self._reasoning += len(delta.reasoning)
            return self._chunk({"reasoning_content": delta.reasoning})
        self._text += len(delta.text)
        return self._chunk({"content": delta.text})

    def _missed(self, finished: Finished) -> list[dict[str, Any]]:
        """Returns what the events did not have: those of a repeated call, or of a slow reader."""
        message, chunks = finished.message, []
        if rest := message.reasoning[self._reasoning :]:
            chunks.append(self._chunk({"reasoning_content": rest}))
        if rest := message.content[self._text :]:
            chunks.append(self._chunk({"content": rest}))
        for index, call in enumerate(message.tool_calls):
            chunks += self._missed_call(index, call)
        return chunks

    def _missed_call(self, index: int, call: ToolCall) -> list[dict[str, Any]]:
        if index >= len(self._arguments):
            return [self._call(index, call.arguments, call.id, call.name, call.engine_data)]
        rest = call.arguments[self._arguments[index] :]
        if rest or call.engine_data:
            return [self._call(index, rest, engine_data=call.engine_data)]
        return []

    def _call(
        self, index: int, arguments: str, call_id: str = "", name: str = "", engine_data: str = ""
    ) -> dict[str, Any]:
        written: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
        if call_id:
            written |= {"id": call_id, "type": "function"}
        if name:
            written["function"]["name"] = name
        if engine_data:
            written["engine_data"] = engine_data
        return self._chunk({"tool_calls": [written]})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
