"""The messages of a request, with what their server needs back.

Without content, a message with tool calls has a `content` of null, as OpenAI's own clients send it
(vLLM and llama-server accept null and no `content` alike). A server gets its own ids of calls, and
results in the order of the calls where those ids are equal. Signatures and reasoning go only to the
server and model that gave them, and only with tool calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core.model import Message, Role, ToolCall
from ruvd.engines.chat.engine_data import decode_data, returned_fields


@dataclass(frozen=True, slots=True)
class SendBack:
    """The parts of an answer with tool calls that are sent back: the `fields` with signatures, and
    the text of the reasoning under the name `reasoning`, empty for not at all."""

    fields: bool = True
    reasoning: str = ""


def encode_messages(
    messages: Sequence[Message], origin: str, send_back: SendBack
) -> list[dict[str, Any]]:
    """Returns the messages for the server `origin`."""
    out: list[dict[str, Any]] = []
    own_ids: Mapping[str, str] = {}
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            if messages[index - 1].role is not Role.TOOL:
                out += _results(messages[index:], own_ids)
            continue
        if not message.tool_calls:
            out.append({"role": message.role, "content": message.content})
            continue
        calls = [_call(call, origin, send_back) for call in message.tool_calls]
        own_ids = {
            call.id: sent["id"] for call, sent in zip(message.tool_calls, calls, strict=True)
        }
        out.append(
            {
                "role": message.role,
                "content": message.content or None,
                **_returned(message, origin, send_back),
                "tool_calls": calls,
            }
        )
    return out


def _results(messages: Sequence[Message], own_ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the tools' messages at the beginning."""
    end = next((n for n, each in enumerate(messages) if each.role is not Role.TOOL), len(messages))
    results = list(messages[:end])
    if len(set(own_ids.values())) < len(own_ids):
        order = {id_: number for number, id_ in enumerate(own_ids)}
        results.sort(key=lambda result: order.get(result.tool_call_id, len(order)))
    return [
        {
            "role": "tool",
            "tool_call_id": own_ids.get(result.tool_call_id, result.tool_call_id),
            "content": result.content,
        }
        for result in results
    ]


def _call(call: ToolCall, origin: str, send_back: SendBack) -> dict[str, Any]:
    data = decode_data(call.engine_data, origin)
    own_id = data.get("id")
    function: dict[str, Any] = {"name": call.name, "arguments": call.arguments}
    fields: dict[str, Any] = {}
    if send_back.fields:
        fields = returned_fields(data)
        function |= returned_fields(data, "function")
    return {
        "id": own_id if isinstance(own_id, str) and own_id else call.id,
        "type": "function",
        "function": function,
        **fields,
    }


def _returned(message: Message, origin: str, send_back: SendBack) -> dict[str, Any]:
    data = decode_data(message.engine_data, origin)
    is_of_another = bool(message.engine_data) and not data
    fields = returned_fields(data) if send_back.fields else {}
    if send_back.reasoning and message.reasoning and not is_of_another:
        fields[send_back.reasoning] = message.reasoning
    return fields
