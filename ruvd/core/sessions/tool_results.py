"""The check that each tool result answers an open tool call of the conversation. Pure."""

from collections.abc import Sequence

from ruvd.core.errors import FieldViolation, InvalidRequest
from ruvd.core.model import Message, Role


def check_results(before: Sequence[Message], messages: Sequence[Message]) -> None:
    """Raises InvalidRequest, naming each tool message that answers no open call.

    `before` is the exchange that the messages continue. A call is open from the assistant's
    message that makes it until it is answered or a message of another role follows.
    """
    open_calls: set[str] = set()
    wrong = []
    for index, message in enumerate([*before, *messages], start=-len(before)):
        if message.role is not Role.TOOL:
            open_calls = {call.id for call in message.tool_calls}
        elif message.tool_call_id in open_calls:
            open_calls.remove(message.tool_call_id)
        elif index >= 0:
            known = ", ".join(sorted(open_calls)) or "none is open"
            text = f"{message.tool_call_id!r} is no open tool call of this conversation ({known})"
            wrong.append(FieldViolation(f"messages[{index}].tool_call_id", text))
    if wrong:
        raise InvalidRequest(wrong)
