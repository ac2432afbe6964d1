"""The history that a client sends along with the new messages of a session.

Clients of OpenAI's API send the whole conversation in every call. In a session only what follows
the last message of the assistant is new. What comes before must be the end of the session's
history; a session that does not exist yet begins with it.
"""

from collections.abc import Sequence
from dataclasses import replace

from ruvd.core import model
from ruvd.core.errors import SessionNotFound
from ruvd.core.sessions.model import HistoryPage
from ruvd.http.openai.messages import Conversation
from ruvd.http.openai.parts import Parts
from ruvd.http.refusals import Refused
from ruvd.rpc import convert, requests
from ruvd.rpc.identity.caller import scoped_id
from ruvd.v1 import session_service_pb2 as pb

_PAGE_BYTES = 4 << 20
_REMEDY = "send only the new messages, or name another session"


async def agree(
    parts: Parts,
    request: pb.CompleteRequest,
    conversation: Conversation,
) -> None:
    """Raises InvalidRequest unless the session's history ends with the one that was sent."""
    sent = conversation.messages[: conversation.new]
    if not sent:
        return
    session_id = scoped_id(request.session_id)
    try:
        state = await parts.sessions.get(session_id)
    except SessionNotFound:
        await _begin(parts, request, sent)
        return
    count = state.session.message_count
    if len(sent) > count:
        _differ(
            "messages", f"has {len(sent)} messages before the new ones, the session has {count}"
        )
    page = HistoryPage(first=count - len(sent), max_messages=len(sent), max_bytes=_PAGE_BYTES)
    done = 0
    while done < len(sent):
        page = replace(page, first=count - len(sent) + done, max_messages=len(sent) - done)
        stored = (await parts.sessions.history(session_id, page)).messages or ()
        _compare(conversation, done, stored)
        done += len(stored)


def _compare(conversation: Conversation, done: int, stored: Sequence[model.Message]) -> None:
    for index, message in enumerate(stored, done):
        if _essence(conversation.messages[index]) != _stored_essence(message):
            position = conversation.positions[index]
            _differ(f"messages[{position}]", "differs from the message in the session's history")


def _differ(path: str, text: str) -> None:
    raise Refused(400, "invalid_request", f"{text}; {_REMEDY}", path)


def _essence(message: pb.Message) -> object:
    calls = [(call.id, call.name, call.arguments) for call in message.tool_calls]
    return convert.ROLES[message.role], message.content, calls, message.tool_call_id


def _stored_essence(message: model.Message) -> object:
    calls = [(call.id, call.name, call.arguments) for call in message.tool_calls]
    return message.role, message.content, calls, message.tool_call_id


async def _begin(parts: Parts, request: pb.CompleteRequest, sent: Sequence[pb.Message]) -> None:
    """Creates the session with the history that was sent."""
    new = pb.CreateSessionRequest(
        session_id=request.session_id, system_prompt=request.system_prompt, messages=sent
    )
    await parts.commands.create(requests.create_session(new, parts.limits, parts.policy))
