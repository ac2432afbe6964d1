"""A conversation with tools, made of texts that a store or a format might change."""

from __future__ import annotations

from dataclasses import replace

from ruvd_client import Message as ProtoMessage
from ruvd_client import Role as ProtoRole
from ruvd_client.v1.session_service_pb2 import ToolCall as ProtoToolCall

from ruvd.core.model import Message, Role, Session, ToolCall
from ruvd.core.ports.store import Commit
from ruvd.core.sessions import window

# No valid JSON, a JSON with spaces and escapes of its own, a precomposed and a combined letter,
# ends of lines and of files, what is no character, and the last one there is.
ODD_TEXTS = (
    '{"a": ',
    ' {"city":\t"Z\\u00fcrich", "n": 1.0e0}\r\n',
    "\u00e9 e\u0301 \u2028\u2029\x85\x1a\x1b[0m\x7f\ufeff\ufffe\uffff \U0001f600\U0010ffff",
    "\"'\\\\; DROP TABLE messages; -- \x01",
    "",
)

CALLS = tuple(
    ToolCall(f"call {n}", f"f{n}", text, '{"id":"x:3",\t"a": 1.0}' if n % 2 else "")
    for n, text in enumerate(ODD_TEXTS)
)
RESULTS = tuple(
    Message(Role.TOOL, text, tool_call_id=call.id)
    for call, text in zip(CALLS, reversed(ODD_TEXTS), strict=True)
)
# One exchange: a question, calls, their results, an answer.
TOOL_EXCHANGE = (
    Message(Role.USER, "How warm is it?"),
    Message(Role.ASSISTANT, "", CALLS, reasoning=ODD_TEXTS[2], engine_data='{"fields":  {}}'),
    *RESULTS,
    Message(Role.ASSISTANT, "Warm.", reasoning="\n"),
)


def proto_of(message: Message) -> ProtoMessage:
    """The message as clients have it."""
    calls = [
        ProtoToolCall(
            id=call.id, name=call.name, arguments=call.arguments, engine_data=call.engine_data
        )
        for call in message.tool_calls
    ]
    return ProtoMessage(
        role=ProtoRole.Value(f"ROLE_{message.role.name}"),
        content=message.content,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
        engine_data=message.engine_data,
    )


def said(before: Session, *messages: Message) -> Commit:
    """The commit of these messages after what was said before."""
    numbered = window.number(before.exchange_count, messages)
    return Commit(
        replace(
            before,
            message_count=before.message_count + len(messages),
            exchange_count=numbered[-1][0] + 1,
            size_bytes=before.size_bytes + sum(message.size_bytes for message in messages),
        ),
        numbered,
    )
