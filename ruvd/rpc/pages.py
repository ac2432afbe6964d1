"""Pages of histories and of lists: their tokens, and as much as fits into a response."""

import asyncio
import base64
from collections.abc import Sequence

from ruvd.core.errors import ResponseTooLarge
from ruvd.core.model import Session
from ruvd.core.sessions.model import SessionState
from ruvd.rpc import convert, message_parts
from ruvd.v1 import session_service_pb2 as pb

# Below the 4 MiB that a gRPC client takes by default.
MAX_RESPONSE_BYTES = (4 << 20) - (64 << 10)
_FIELD_BYTES = 8  # the tag and the length of a field, at most
_PART_OVERHEAD = 64  # the other fields of a part and of its response
_MIN_PART_BYTES = 64 << 10  # also beside a system prompt that fills the response
_SESSIONS_AT_ONCE = 50
# What an object of a message takes besides its text, in a response and in memory.
_MAX_MESSAGE_OVERHEAD = 256
# The event loop gets a pause after so many bytes of messages; a short message costs as much time as
# the copy of this many bytes.
_BYTES_AT_ONCE = 1 << 18
_MESSAGE_COST_BYTES = 1 << 10


def page_token(cursor: int) -> str:
    """Returns the opaque page token of a cursor; empty for cursor 0."""
    return token(str(cursor)) if cursor else ""


def history_page_token(state: SessionState, first: int, offset: int = 0) -> str:
    """Returns the token of the page that begins with message `first`; empty after the last one.

    With an `offset` it begins within the message. The time of creation tells the session from a
    later one with the same id.
    """
    if first >= state.session.message_count:
        return ""
    position = f"{first}+{offset}" if offset else str(first)
    return token(f"{position}@{state.created.hex()}")


def token(text: str) -> str:
    """Returns a text as an opaque page token."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_token(token: str) -> str:
    """Returns the text of a page token. Raises ValueError if it is malformed."""
    return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()


async def add_sessions(
    states: Sequence[SessionState], response: pb.ListSessionsResponse
) -> tuple[int, int]:
    """Adds as many sessions as a response may hold, at least one; returns their number and size."""
    size = 0
    for count, state in enumerate(states):
        if count and count % _SESSIONS_AT_ONCE == 0:
            await asyncio.sleep(0)  # labels may make a page large, and others are to be served
        proto = convert.session(state, without_prompt=True)
        size += proto.ByteSize() + _FIELD_BYTES
        if count and size > MAX_RESPONSE_BYTES:
            return count, size
        response.sessions.append(proto)
    return len(states), size


async def session_page(state: SessionState, *, paged: bool) -> pb.Session:
    """Converts a session with as many of its messages as fit, if `paged` at least one.

    Raises ResponseTooLarge unless `paged` if its whole history does not fit.
    """
    stored, messages = state.session, state.messages or ()
    if not paged and len(messages) < stored.message_count:
        raise too_large(stored)
    proto = convert.session(state)
    size, since_pause = proto.ByteSize() + _FIELD_BYTES, 0
    for count, each in enumerate(messages):
        added = proto.messages.add()
        convert.message(each, added)
        message_size = added.ByteSize() + _FIELD_BYTES
        size += message_size
        if size > MAX_RESPONSE_BYTES and (count or not paged):
            if not paged:
                raise too_large(stored)
            del proto.messages[-1]
            break
        since_pause += message_size + _MESSAGE_COST_BYTES
        if since_pause > _BYTES_AT_ONCE:
            since_pause = 0
            await asyncio.sleep(0)
    return proto


def message_part(state: SessionState, offset: int) -> pb.MessagePart | None:
    """Returns the part of the page's first message from `offset` on; None if it fits as a whole."""
    messages = state.messages or ()
    session_bytes = convert.session(state).ByteSize() + _PART_OVERHEAD
    room = max(_MIN_PART_BYTES, MAX_RESPONSE_BYTES - session_bytes)
    if not messages or not (offset or messages[0].size_bytes > room - _MAX_MESSAGE_OVERHEAD):
        return None
    message = pb.Message()
    convert.message(messages[0], message)
    if not offset and message.ByteSize() <= room:
        return None
    return message_parts.part(message, offset, room)


def too_large(session: Session) -> ResponseTooLarge:
    """Returns the error for a history that does not fit into one response."""
    return ResponseTooLarge(
        f"the session has {session.message_count} messages and {session.size_bytes} bytes, more"
        " than fit into one response; set page_size and follow next_page_token with page_token"
    )


def history_bytes(session: Session, max_messages: int) -> int:
    """Returns the size of a page of the session's history, or more."""
    system_prompt = len(session.system_prompt.encode())
    messages = min(session.message_count, max_messages)
    size = session.size_bytes + messages * _MAX_MESSAGE_OVERHEAD + system_prompt
    return min(size, MAX_RESPONSE_BYTES)
