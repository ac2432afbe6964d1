"""Reading of the messages of a chat completion, and messages written as OpenAI does.

`developer` means `system`, and several system messages at the beginning are one system prompt.
Reasoning is `reasoning_content`, as servers of open models call it.
"""

from dataclasses import dataclass, field
from typing import Any

from ruvd.core.model import Message, ToolCall
from ruvd.http.openai.fields import Fields, join, shown
from ruvd.v1 import session_service_pb2 as pb

SYSTEM_ROLES = ("system", "developer")
_ROLES = {
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
TEXT_PARTS = ("text", "input_text", "output_text")
ONLY_TEXT = "only text is supported; put what the model is to know of it into the text"


@dataclass(slots=True)
class Conversation:
    """The system prompt, and the messages after it with their positions in the request."""

    system_prompt: str = ""
    messages: list[pb.Message] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    @property
    def new(self) -> int:
        """The index of the first message after the last one of an assistant."""
        roles = [message.role for message in self.messages]
        return (
            len(roles) - roles[::-1].index(pb.ROLE_ASSISTANT) if pb.ROLE_ASSISTANT in roles else 0
        )


def read_conversation(fields: Fields, value: Any, path: str) -> Conversation:
    """Reads the messages of a request."""
    conversation = Conversation()
    prompts: list[str] = []
    for index, (at, each) in enumerate(fields.items(value, path)):
        given = fields.object(each, at)
        role = given.pop("role", None)
        if not isinstance(each, dict):
            continue
        if isinstance(role, str) and role in SYSTEM_ROLES:
            if conversation.messages:
                text = "only the first messages may be system messages"
                fields.refuse(f"{at}.role", text)
            prompts.append(_system(fields, given, at))
        elif isinstance(role, str) and role in _ROLES:
            message = _message(fields, _ROLES[role], given, at)
            conversation.messages.append(message)
            conversation.positions.append(index)
        elif role == "function":
            fields.refuse(f"{at}.role", "is deprecated: use the role tool with a tool_call_id")
        else:
            fields.refuse(
                f"{at}.role", f"must be system, user, assistant or tool, not {shown(role)}"
            )
    conversation.system_prompt = "\n\n".join(prompt for prompt in prompts if prompt)
    return conversation


def _system(fields: Fields, given: dict[str, Any], path: str) -> str:
    text = content(fields, given.pop("content", None), join(path, "content"))
    _refuse_name(fields, given, path)
    fields.refuse_rest(given, path)
    return text


def _message(
    fields: Fields, role: pb.Role.ValueType, given: dict[str, Any], path: str
) -> pb.Message:
    message = pb.Message(role=role)
    if role == pb.ROLE_ASSISTANT:
        if given.get("refusal") is not None and not given.get("content"):
            given["content"] = given.pop("refusal")
        _assistant(fields, message, given, path)
    elif role == pb.ROLE_TOOL:
        call_id = fields.text(given.pop("tool_call_id", None), join(path, "tool_call_id"))
        message.tool_call_id = call_id
        # The name of the function, which its call has.
        fields.optional(given, "name", path, fields.text)
    message.content = content(fields, given.pop("content", None), join(path, "content"))
    _refuse_name(fields, given, path)
    fields.refuse_rest(given, path)
    return message


def _refuse_name(fields: Fields, given: dict[str, Any], path: str) -> None:
    if given.pop("name", None) not in (None, ""):
        fields.refuse(join(path, "name"), "is not supported; put who speaks into the content")


def _assistant(fields: Fields, message: pb.Message, given: dict[str, Any], path: str) -> None:
    for name in ("reasoning_content", "reasoning"):
        message.reasoning = fields.optional(given, name, path, fields.text) or message.reasoning
    message.engine_data = fields.optional(given, "engine_data", path, fields.text) or ""
    calls = given.pop("tool_calls", None)
    for at, each in fields.items([] if calls is None else calls, join(path, "tool_calls")):
        message.tool_calls.append(_tool_call(fields, each, at))


def _tool_call(fields: Fields, value: Any, path: str) -> pb.ToolCall:
    given = fields.object(value, path)
    fields.choice(given.pop("type", "function"), f"{path}.type", ("function",))
    function = fields.object(given.pop("function", {}), f"{path}.function")
    call = pb.ToolCall(
        id=fields.text(given.pop("id", None), f"{path}.id"),
        name=fields.text(function.pop("name", None), f"{path}.function.name"),
        arguments=fields.text(function.pop("arguments", ""), f"{path}.function.arguments"),
        engine_data=fields.optional(given, "engine_data", path, fields.text) or "",
    )
    given.pop("index", None)  # of a streamed piece
    fields.refuse_rest(function, f"{path}.function")
    fields.refuse_rest(given, path)
    return call


def content(fields: Fields, value: Any, path: str) -> str:
    """Reads a text, null, or a list of texts."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return fields.text(value, path)
    return "".join(_part(fields, each, at) for at, each in fields.items(value, path))


def _part(fields: Fields, value: Any, path: str) -> str:
    part = fields.object(value, path)
    name = part.pop("type", None)
    if name == "refusal":
        return fields.text(part.pop("refusal", None), f"{path}.refusal")
    if name not in TEXT_PARTS:
        fields.refuse(f"{path}.type", f"must be text, not {shown(name)}: {ONLY_TEXT}")
        return ""
    text = fields.text(part.pop("text", None), f"{path}.text")
    fields.refuse_rest(part, path)
    return text


def to_openai(message: Message) -> dict[str, Any]:
    """Returns an answer as OpenAI's API writes it."""
    written: dict[str, Any] = {
        "role": message.role.value,
        "content": message.content or None if message.tool_calls else message.content,
        "refusal": None,
        "annotations": [],
    }
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.tool_calls:
        written["tool_calls"] = [_written_call(call) for call in message.tool_calls]
    if message.engine_data:
        written["engine_data"] = message.engine_data
    return written


def _written_call(call: ToolCall) -> dict[str, Any]:
    written: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    return written | ({"engine_data": call.engine_data} if call.engine_data else {})
