"""The OpenAI Agents SDK: a `Session` whose history ruvd keeps.

    from ruvd_frameworks.openai_agents import RuvdSession

    await Runner.run(agent, "My name is Alice.", session=RuvdSession("alice"))
    await Runner.run(agent, "What is my name?", session=RuvdSession("alice"))

The SDK calls the model itself and hands the items of each turn to the session, which survives the
process here. Let the model be ruvd too (`--http-listen`), and the engine's cache knows the prompts:
see docs/openai-api.md.

ruvd keeps messages, tool calls and tool results. Other items, such as reasoning, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from agents.items import TResponseInputItem
from agents.memory import SessionABC, SessionSettings
from ruvd_client import (
    AsyncClient,
    ErrorReason,
    Message,
    Role,
    RuvdError,
    Session,
    SessionView,
    ToolCall,
)

_ROLES = {
    "user": Role.ROLE_USER,
    "assistant": Role.ROLE_ASSISTANT,
    "system": Role.ROLE_SYSTEM,
    "developer": Role.ROLE_SYSTEM,
}
_TEXTS = ("input_text", "output_text", "text")


class RuvdSession(SessionABC):
    """A session of the Agents SDK. `client` is one for asyncio, by default that of RUVD_ADDRESS."""

    def __init__(
        self,
        session_id: str,
        *,
        client: AsyncClient | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings or SessionSettings()
        self._client = client or AsyncClient()

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Returns the items of the history, the latest ones if there is a limit."""
        session = await self._session()
        if session is None:
            return []
        system = [Message(role=Role.ROLE_SYSTEM, content=session.system_prompt)]
        messages = [*(system if session.system_prompt else []), *session.messages]
        items = [item for message in messages for item in to_items(message)]
        if limit is None:
            limit = self.session_settings.limit if self.session_settings else None
        if limit is None:
            return items
        return items[-limit:] if limit > 0 else []

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Commits items; the session is created if it is missing."""
        messages = to_messages(items)
        if not messages:
            return
        try:
            await self._client.append_messages(self.session_id, messages)
        except RuvdError as error:
            if error.reason != ErrorReason.SESSION_NOT_FOUND:
                raise
            await self._client.create_session(session_id=self.session_id, messages=messages)

    async def pop_item(self) -> TResponseInputItem | None:
        """Removes and returns the last item, None if there is none.

        ruvd's histories only grow, so the session is replaced by one without that item. Do not run
        turns of it meanwhile.
        """
        items = await self.get_items(limit=10**9)
        if not items:
            return None
        await self.clear_session()
        await self.add_items(items[:-1])
        return items[-1]

    async def clear_session(self) -> None:
        """Deletes the session."""
        await self._client.end_session(self.session_id, allow_missing=True)

    async def _session(self) -> Session | None:
        try:
            return await self._client.get_session(self.session_id, SessionView.SESSION_VIEW_FULL)
        except RuvdError as error:
            if error.reason == ErrorReason.SESSION_NOT_FOUND:
                return None
            raise


def to_messages(items: Sequence[TResponseInputItem]) -> list[Message]:
    """Returns ruvd's form of items. The tool calls of one answer become one message."""
    messages: list[Message] = []
    for each in items:
        item = cast("dict[str, Any]", each)
        kind = item.get("type") or ("message" if "role" in item else "")
        last = messages[-1] if messages else None
        if kind == "message":
            messages.append(Message(role=_ROLES[item["role"]], content=_text(item["content"])))
        elif kind == "function_call":
            if last is None or last.role != Role.ROLE_ASSISTANT:
                last = Message(role=Role.ROLE_ASSISTANT)
                messages.append(last)
            last.tool_calls.append(
                ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            )
        elif kind == "function_call_output":
            output = item["output"]
            text = output if isinstance(output, str) else _text(output)
            messages.append(
                Message(role=Role.ROLE_TOOL, content=text, tool_call_id=item["call_id"])
            )
    return messages


def to_items(message: Message) -> list[TResponseInputItem]:
    """Returns the items of a message."""
    items: list[dict[str, Any]] = []
    if message.role == Role.ROLE_TOOL:
        items.append(
            {
                "type": "function_call_output",
                "call_id": message.tool_call_id,
                "output": message.content,
            }
        )
    elif message.content or not message.tool_calls:
        role = next(name for name, role in _ROLES.items() if role == message.role)
        items.append({"role": role, "content": message.content})
    items += [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in message.tool_calls
    ]
    return cast("list[TResponseInputItem]", items)


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") not in _TEXTS:
            raise ValueError(
                f"ruvd keeps text only, no {part.get('type')}: {json.dumps(part)[:200]}"
            )
    return "".join(part["text"] for part in content)
