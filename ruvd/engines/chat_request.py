"""The body of a chat completions request.

The same request gives the same bytes: fields are in one order, and a tool's schema goes out as
its text came in, so that what the server caches by prefix is found again. Reasoning is never
sent. `content` is null beside tool calls if there is none, as OpenAI's own clients send it back
(vLLM and llama-server take null as well as nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ruvd.errors import EngineRejected
from ruvd.model import Message, Role
from ruvd.options import (
    RESERVED_FIELDS,
    CompletionOptions,
    ResponseFormat,
    Tool,
    ToolChoiceMode,
)
from ruvd.ports import EngineRequest


def encode(
    request: EngineRequest,
    *,
    model: str,
    extra: Mapping[str, Any],
    max_tokens_field: str = "max_tokens",
) -> bytes:
    """The body, with `extra` of the adapter and then the caller's `extra_body`.

    Raises EngineRejected for an `extra_body` that would change what is there.
    """
    options = request.options
    body: dict[str, Any] = {"model": model}
    body["messages"] = [_message(message) for message in request.messages]
    if options.tools:
        body["tools"] = [_tool(tool) for tool in options.tools]
    optional = {
        "tool_choice": _tool_choice(options),
        "parallel_tool_calls": options.parallel_tool_calls,
        "response_format": options.response_format and _response_format(options.response_format),
        "temperature": options.temperature,
        "top_p": options.top_p,
        max_tokens_field: options.max_tokens,
        "stop": list(options.stop) or None,
        "seed": options.seed,
        "frequency_penalty": options.frequency_penalty,
        "presence_penalty": options.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sorted(options.logit_bias.items())},
    }
    body |= {name: value for name, value in optional.items() if value not in (None, {})}
    body |= {"stream": True, "stream_options": {"include_usage": True}, **extra}
    if taken := sorted(
        name for name in options.extra_body if name in body or name in RESERVED_FIELDS
    ):
        raise EngineRejected(f"extra_body must not have {', '.join(taken)}")
    # Its maps come from protobuf, which gives them in any order.
    extra_body = {
        name: msgspec.Raw(msgspec.json.encode(value, order="deterministic"))
        for name, value in sorted(options.extra_body.items())
    }
    return msgspec.json.encode({**body, **extra_body})


def _message(message: Message) -> dict[str, Any]:
    if message.role is Role.TOOL:
        return {
            "role": "tool",
            "tool_call_id": message.tool_call_id,
            "content": message.content,
        }
    if not message.tool_calls:
        return {"role": message.role.value, "content": message.content}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    return {"role": message.role.value, "content": message.content or None, "tool_calls": calls}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = _raw(tool.parameters)
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(options: CompletionOptions) -> str | dict[str, Any] | None:
    choice = options.tool_choice
    if isinstance(choice, str):
        return {"type": "function", "function": {"name": choice}}
    return choice.value if isinstance(choice, ToolChoiceMode) else None


def _response_format(asked: ResponseFormat) -> dict[str, Any]:
    # OpenAI requires a name.
    schema: dict[str, Any] = {"name": asked.name or "answer", "schema": _raw(asked.json_schema)}
    if asked.strict is not None:
        schema["strict"] = asked.strict
    return {"type": "json_schema", "json_schema": schema}


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())
