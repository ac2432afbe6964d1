"""The attributes of GenAI spans, made from the request and the answer of a generation.

Message content is included only where the operator asks for it. It is JSON text, because span
attributes have no structured values.
"""

import json
from typing import Any

from opentelemetry.util.types import AttributeValue

from ruvd.core.model import FinishReason, Message, Role, ToolCall, ToolCallDelta
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import (
    EngineChunk,
    EngineDone,
    EngineReasoning,
    EngineRequest,
    EngineText,
)


def request_attributes(request: EngineRequest, *, content: bool) -> dict[str, AttributeValue]:
    """Returns the attributes of a request, with its messages and tools if `content` is true."""
    options = request.options
    attributes: dict[str, AttributeValue | None] = {
        "gen_ai.conversation.id": request.session_key or None,
        "gen_ai.request.stream": True,
        "gen_ai.output.type": "json" if options.response_format else None,
        "gen_ai.request.temperature": options.temperature,
        "gen_ai.request.top_p": options.top_p,
        "gen_ai.request.max_tokens": options.max_tokens,
        "gen_ai.request.stop_sequences": options.stop or None,
        "gen_ai.request.seed": options.seed,
        "gen_ai.request.frequency_penalty": options.frequency_penalty,
        "gen_ai.request.presence_penalty": options.presence_penalty,
    }
    if content:
        messages = [_message(message) for message in request.messages]
        attributes["gen_ai.input.messages"] = _json(messages)
        attributes["gen_ai.tool.definitions"] = _tools(options)
    return {name: value for name, value in attributes.items() if value is not None}


def answer_attributes(done: EngineDone) -> dict[str, AttributeValue]:
    """Returns the attributes of an answer, as the engine reported them."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.response.finish_reasons": (done.finish_reason.value,)
    }
    if done.usage:
        attributes["gen_ai.usage.input_tokens"] = done.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = done.usage.completion_tokens
        if done.usage.cached_tokens is not None:
            attributes["gen_ai.usage.cache_read.input_tokens"] = done.usage.cached_tokens
    return attributes


class AnswerRecorder:
    """Gathers the chunks of an answer for `gen_ai.output.messages`."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, chunk: EngineChunk) -> None:
        """Adds a chunk of the answer."""
        match chunk:
            case EngineText(text):
                self._text.append(text)
            case EngineReasoning(text):
                self._reasoning.append(text)
            case ToolCallDelta():
                self._calls.setdefault(chunk.index, []).append(chunk)

    def messages(self, reason: FinishReason | None, *, with_reason: bool) -> str:
        """Returns the answer so far as JSON. Its finish reason is `error` without a `reason`."""
        calls = tuple(
            ToolCall(deltas[0].id, deltas[0].name, "".join(delta.arguments for delta in deltas))
            for _, deltas in sorted(self._calls.items())
        )
        answer = Message(
            Role.ASSISTANT, "".join(self._text), calls, reasoning="".join(self._reasoning)
        )
        message = _message(answer)
        if with_reason:
            words = {None: "error", FinishReason.TOOL_CALLS: "tool_call"}
            message["finish_reason"] = words.get(reason) or (reason.value if reason else "error")
        return _json([message])


def _message(message: Message) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.reasoning:
        parts.append({"type": "reasoning", "content": message.reasoning})
    if message.role is Role.TOOL:
        call = {"type": "tool_call_response", "id": message.tool_call_id}
        parts.append(call | {"response": message.content})
    elif message.content:
        parts.append({"type": "text", "content": message.content})
    parts += (
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    )
    return {"role": message.role.value, "parts": parts}


def _tools(options: CompletionOptions) -> str | None:
    tools = [{"type": "function", "name": tool.name} for tool in options.tools]
    return _json(tools) if tools else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
