"""The body of a chat completions request.

The same request is always encoded to the same bytes, so that the server finds it in its prefix
cache: the fields have a fixed order, and a tool's schema is sent as the text that was received.
Messages that some servers refuse are mended (`history`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from ruvd.core.errors import EngineRejected
from ruvd.core.model import Message
from ruvd.core.options import RESERVED_FIELDS, ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.chat.history import sendable
from ruvd.engines.chat.messages import SendBack, encode_messages

Rewrite: TypeAlias = Callable[[Sequence[Message]], Sequence[Message]]

DEFAULT_SEND_BACK = SendBack()

_UNCHANGED_OPTIONS = (
    "parallel_tool_calls", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty",
)  # fmt: skip


def encode(
    request: EngineRequest,
    *,
    model: str,
    extra: Mapping[str, Any],
    max_tokens_field: str = "max_tokens",
    rewrite: Rewrite | None = None,
    origin: str = "",
    send_back: SendBack = DEFAULT_SEND_BACK,
) -> bytes:
    """Returns the body, with the adapter's `extra` fields and then the caller's `extra_body`.

    `rewrite` changes the messages that are sent. The server `origin` gets back what `send_back`
    says. Raises EngineRejected if `extra_body` would replace a field.
    """
    options = request.options
    mended = sendable(request.messages)
    messages = encode_messages(rewrite(mended) if rewrite else mended, origin, send_back)
    body: dict[str, Any] = {"model": model, "messages": messages}
    if options.tools:
        body["tools"] = [_tool(tool) for tool in options.tools]
    for name in _UNCHANGED_OPTIONS:
        if (value := getattr(options, name)) is not None:
            body[name] = value
    if options.max_tokens is not None:
        body[max_tokens_field] = options.max_tokens
    if options.tool_choice is not None:
        body["tool_choice"] = _tool_choice(options.tool_choice)
    if options.response_format is not None:
        body["response_format"] = _response_format(options.response_format)
    if options.stop:
        body["stop"] = options.stop
    if options.logit_bias:
        biases = sorted(options.logit_bias.items())
        body["logit_bias"] = {str(token): bias for token, bias in biases}
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    body |= extra
    if options.extra_body:
        _add_extra_body(options.extra_body, body)
    return msgspec.json.encode(body)


def _add_extra_body(extra_body: Mapping[str, Any], body: dict[str, Any]) -> None:
    """Adds the caller's fields. Raises EngineRejected if one exists or is reserved."""
    if taken := sorted(name for name in extra_body if name in body or name in RESERVED_FIELDS):
        raise EngineRejected(f"extra_body must not have {', '.join(taken)}")
    # The maps come from protobuf, which does not keep their order.
    for name, value in sorted(extra_body.items()):
        body[name] = msgspec.Raw(msgspec.json.encode(value, order="deterministic"))


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = _raw(tool.parameters)
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoiceMode | str) -> str | dict[str, Any]:
    if isinstance(choice, ToolChoiceMode):
        return choice.value
    return {"type": "function", "function": {"name": choice}}


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.json_object:
        return {"type": "json_object"}
    # OpenAI requires a name.
    schema: dict[str, Any] = {"name": wanted.name or "answer", "schema": _raw(wanted.json_schema)}
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())
