"""Items of responses and conversations: reading them into messages, and messages as items.

A message of the assistant is several items: its reasoning, its text and each of its tool calls.
"""

from collections.abc import Sequence
from typing import Any

from ruvd.core.model import Message, Role
from ruvd.http.openai.fields import Fields, shown
from ruvd.http.openai.messages import SYSTEM_ROLES, Conversation, content
from ruvd.v1 import session_service_pb2 as pb

_TYPES = ("message", "function_call", "function_call_output", "reasoning")


class ItemReader:
    """Reads items in order; those of the assistant that follow each other are one message."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._conversation = Conversation()
        self._prompts: list[str] = []
        self._open: pb.Message | None = None  # the assistant's message that more items may follow
        # Of the open message. Protobuf would keep a copy of all before for each piece.
        self._reasoning: list[str] = []

    def read(self, value: Any, path: str) -> Conversation:
        """Reads a text, which is a user's message, or a list of items."""
        if isinstance(value, str):
            self._add(pb.Message(role=pb.ROLE_USER, content=self._fields.text(value, path)), 0)
        else:
            for index, (at, each) in enumerate(self._fields.items(value, path)):
                self._item(self._fields.object(each, at), at, index)
        self._close()
        self._conversation.system_prompt = "\n\n".join(each for each in self._prompts if each)
        return self._conversation

    def _close(self) -> None:
        """Ends the assistant's message."""
        if self._open is not None and self._reasoning:
            self._open.reasoning = "".join(self._reasoning)
        self._open = None
        self._reasoning.clear()

    def _add(self, message: pb.Message, index: int) -> None:
        self._close()
        self._conversation.messages.append(message)
        self._conversation.positions.append(index)
        self._open = message if message.role == pb.ROLE_ASSISTANT else None

    def _assistant(self, index: int) -> pb.Message:
        if self._open is None:
            self._add(pb.Message(role=pb.ROLE_ASSISTANT), index)
        message = self._open
        assert message is not None  # noqa: S101  # it has just been added
        return message

    def _item(self, item: dict[str, Any], path: str, index: int) -> None:
        fields = self._fields
        kind = item.pop("type", "message")
        for name in ("id", "status"):  # of an item that a response has had
            item.pop(name, None)
        match kind:
            case "message":
                self._message(item, path, index)
            case "function_call":
                call = self._assistant(index).tool_calls.add()
                call.id = fields.text(item.pop("call_id", None), f"{path}.call_id")
                call.name = fields.text(item.pop("name", None), f"{path}.name")
                call.arguments = fields.text(item.pop("arguments", ""), f"{path}.arguments")
                call.engine_data = fields.optional(item, "engine_data", path, fields.text) or ""
            case "function_call_output":
                message = pb.Message(role=pb.ROLE_TOOL)
                call_id = fields.text(item.pop("call_id", None), f"{path}.call_id")
                message.tool_call_id = call_id
                message.content = content(fields, item.pop("output", None), f"{path}.output")
                self._add(message, index)
            case "reasoning":
                parts = item.pop("content", None)
                for at, each in fields.items([] if parts is None else parts, f"{path}.content"):
                    part = fields.object(each, at)
                    text = fields.text(part.get("text"), f"{at}.text")
                    self._assistant(index)
                    self._reasoning.append(text)
                item.pop("summary", None)  # it is never written, as engines make none
            case _:
                text = f"must be {' or '.join(_TYPES)}, not {shown(kind)}"
                fields.refuse(f"{path}.type", text)
                return
        fields.refuse_rest(item, path)

    def _message(self, item: dict[str, Any], path: str, index: int) -> None:
        fields, role = self._fields, item.pop("role", None)
        for name in ("phase", "agent"):
            item.pop(name, None)
        text = content(fields, _plain(item.pop("content", None)), f"{path}.content")
        if isinstance(role, str) and role in SYSTEM_ROLES:
            if self._conversation.messages:
                fields.refuse(f"{path}.role", f"only the first items may have the role {role}")
            self._prompts.append(text)
        elif role == "user":
            self._add(pb.Message(role=pb.ROLE_USER, content=text), index)
        elif role == "assistant":
            message = self._assistant(index)
            if message.content or message.tool_calls:
                self._close()
                message = self._assistant(index)
            message.content = text
        else:
            fields.refuse(
                f"{path}.role", f"must be user, assistant, system or developer, not {shown(role)}"
            )


def _plain(value: Any) -> Any:
    """Returns content without the fields that output has beside its text."""
    if not isinstance(value, list):
        return value
    empty = ("annotations", "logprobs")
    return [
        {name: each for name, each in part.items() if name not in empty or each}
        if isinstance(part, dict)
        else part
        for part in value
    ]


def written(message: Message, name: str) -> list[dict[str, Any]]:
    """Returns a message as items, whose ids end with `name`."""
    match message.role:
        case Role.TOOL:
            output = {"call_id": message.tool_call_id, "output": message.content}
            return [{"type": "function_call_output", "id": f"fco_{name}", **output,
                     "status": "completed"}]  # fmt: skip
        case Role.ASSISTANT:
            return _written_answer(message, name)
        case role:
            text = {"type": "input_text", "text": message.content}
            return [message_item(f"msg_{name}", [text], role=role.value)]


def _written_answer(message: Message, name: str) -> list[dict[str, Any]]:
    items = []
    if message.reasoning:
        items.append(reasoning_item(f"rs_{name}", [reasoning_part(message.reasoning)]))
    if message.content or not message.tool_calls:
        items.append(message_item(f"msg_{name}", [text_part(message.content)]))
    for index, call in enumerate(message.tool_calls):
        item = call_item(call_item_id(name, index), call.id, call.name, call.arguments)
        if call.engine_data:
            item["engine_data"] = call.engine_data
        items.append(item)
    return items


def call_item_id(name: str, index: int) -> str:
    """Returns the id of a tool call's item."""
    return f"fc_{name}.{index}"


def message_item(
    item_id: str,
    parts: Sequence[dict[str, Any]],
    *,
    role: str = "assistant",
    status: str = "completed",
) -> dict[str, Any]:
    """Returns the item of a message."""
    return {"type": "message", "id": item_id, "status": status, "role": role, "content": [*parts]}


def reasoning_item(
    item_id: str, parts: Sequence[dict[str, Any]], status: str = "completed"
) -> dict[str, Any]:
    """Returns the item of reasoning."""
    return {"type": "reasoning", "id": item_id, "summary": [], "content": [*parts],
            "status": status}  # fmt: skip


def call_item(
    item_id: str, call_id: str, name: str, arguments: str, status: str = "completed"
) -> dict[str, Any]:
    """Returns the item of a tool call."""
    return {"type": "function_call", "id": item_id, "call_id": call_id, "name": name,
            "arguments": arguments, "status": status}  # fmt: skip


def text_part(text: str) -> dict[str, Any]:
    """Returns a part of an answer's text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_part(text: str) -> dict[str, Any]:
    """Returns a part of reasoning."""
    return {"type": "reasoning_text", "text": text}
