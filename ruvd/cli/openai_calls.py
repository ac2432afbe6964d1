"""The tool calls of a conversation in OpenAI's format that still wait for their results."""

import json
from collections.abc import Sequence
from typing import Any

from ruvd_client import Message, Role
from ruvd_client.v1.session_service_pb2 import ToolCall

_MAX_ID_BYTES = 256  # the daemon's limit


class OpenCalls:
    """The open tool calls of a conversation. A call whose id cannot stay gets one of ours."""

    def __init__(self) -> None:
        self._made = 0
        self._open: list[tuple[str, ToolCall]] = []  # with the ids that the file has

    def opened(self, read: Sequence[ToolCall]) -> list[ToolCall]:
        """Opens the calls of one message, and returns them with ids that differ."""
        given = {call.id for call in read}
        taken: set[str] = set()
        self._open = []
        for call in read:
            own = call.id
            while not call.id or call.id in taken or len(call.id.encode()) > _MAX_ID_BYTES:
                self._made += 1
                name = f"call_{self._made}"
                call.id = "" if name in given else name
            taken.add(call.id)
            if own and own != call.id and not call.engine_data:
                call.engine_data = json.dumps({"id": own})
            self._open.append((own, call))
        return [call for _, call in self._open]

    def follow(self, message: Message) -> None:
        """Closes the open calls if a message of another role than the tool's has followed."""
        if message.role == Role.ROLE_USER:
            self._open = []

    def by_id(self, own: str) -> ToolCall | None:
        """Returns the first open call with an id."""
        return next((call for each, call in self._open if each == own), None)

    def by_name(self, name: Any) -> ToolCall | None:
        """Returns the first open call of a function, without a name the first open call."""
        return next((call for _, call in self._open if name in (None, "", call.name)), None)

    def answered(self, call: ToolCall) -> None:
        """Closes a call."""
        self._open = [each for each in self._open if each[1] is not call]
