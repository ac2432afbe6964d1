"""Pages of a history: their tokens and their sizes."""

from __future__ import annotations

import pytest
from core import Core

from ruvd.core.errors import ResponseTooLarge, SessionNotFound
from ruvd.core.model import Message, Role, ToolCall
from ruvd.core.sessions.model import HistoryPage, NewSession, SessionState
from ruvd.rpc import pages, requests
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

TEXTS = [f"m{number}" for number in range(5)]


async def core_with(*messages: Message) -> Core:
    core = Core()
    await core.commands.create(NewSession("s", messages=messages))
    return core


def page(token: str = "", size: int = 2) -> HistoryPage:
    request = pb.GetSessionRequest(
        session_id="s", view=pb.SESSION_VIEW_FULL, page_size=size, page_token=token
    )
    found = requests.get_session(request, RequestLimits())
    assert found is not None
    return found


def contents(state: SessionState) -> list[str]:
    return [message.content for message in state.messages or ()]


async def test_a_token_holds_when_the_wall_clock_is_set_and_not_for_a_new_session() -> None:
    history = [Message(Role.USER, text) for text in TEXTS]
    core = await core_with(*history)
    first = await core.sessions.history("s", page())
    assert contents(first) == TEXTS[:2]
    token = pages.history_page_token(first, 2)
    core.clock.shift = 86_400.0
    second = await core.sessions.history("s", page(token))
    assert contents(second) == TEXTS[2:4]
    last = await core.sessions.history("s", page(pages.history_page_token(second, 4)))
    assert contents(last) == TEXTS[4:]
    assert not pages.history_page_token(last, 5)
    await core.commands.end("s", allow_missing=False)
    core.clock.advance(1)
    await core.commands.create(NewSession("s", messages=history))
    with pytest.raises(SessionNotFound, match="another session"):
        await core.sessions.history("s", page(token))


@pytest.mark.parametrize(
    "message",
    [
        Message(Role.USER, ""),
        Message(Role.USER, "\N{SNOWMAN}" * 100),
        Message(Role.ASSISTANT, "x" * 100_000, reasoning="r" * 1_000),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("c", "f", "{}"),) * 100),
        Message(Role.TOOL, "x", tool_call_id="c" * 100),
    ],
)
async def test_a_page_fills_a_response_and_does_not_exceed_it(message: Message) -> None:
    count = 2 * pages.MAX_RESPONSE_BYTES // max(message.size_bytes, 100)
    core = await core_with()
    state = await core.sessions.history("s")
    state = SessionState(state.session, messages=[message] * count)
    proto = await pages.session_page(state, paged=True)
    size = pb.GetSessionResponse(session=proto, next_page_token="t" * 100).ByteSize()
    assert size <= 4 << 20
    assert len(proto.messages) == count or size > 0.3 * pages.MAX_RESPONSE_BYTES
    with_all = SessionState(state.session, messages=[message] * (20 * count))
    with pytest.raises(ResponseTooLarge):
        await pages.session_page(with_all, paged=False)


async def test_a_page_has_one_message_however_large_it_is() -> None:
    core = await core_with()
    session = (await core.sessions.history("s")).session
    huge = Message(Role.USER, "x" * pages.MAX_RESPONSE_BYTES)
    proto = await pages.session_page(SessionState(session, messages=[huge, huge]), paged=True)
    assert [message.content for message in proto.messages] == [huge.content]
