"""Messages that are too large for one response, and the parts that they are sent in."""

from __future__ import annotations

import pytest
from core import Core
from parts import joined

from ruvd.core.errors import InvalidRequest
from ruvd.core.model import (
    CompletionEvent,
    Finished,
    FinishReason,
    Message,
    Role,
    Timings,
    ToolCall,
)
from ruvd.core.sessions.model import NewSession
from ruvd.rpc import convert, message_parts, pages, requests
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

MEGABYTE = 1 << 20
CALLS = (ToolCall("c", "f", "x" * (3 * MEGABYTE), "{}"), ToolCall("d", "g", "ü" * MEGABYTE))
MESSAGES = [
    Message(Role.ASSISTANT, "x" * (4 * MEGABYTE)),
    Message(Role.ASSISTANT, "ü" * (2 * MEGABYTE) + "x", reasoning="why"),
    Message(Role.ASSISTANT, "\N{GRINNING FACE}x" * MEGABYTE, engine_data='{"a": 1}'),
    Message(Role.ASSISTANT, "x", reasoning="\N{SNOWMAN}" * (2 * MEGABYTE)),
    Message(Role.ASSISTANT, "", CALLS, reasoning="r" * (2 * MEGABYTE)),
]


def proto(message: Message) -> pb.Message:
    into = pb.Message()
    convert.message(message, into)
    return into


def finished(message: Message) -> CompletionEvent:
    timings = Timings(0.0, 0.0, 1.0, None)
    return CompletionEvent(7, Finished(FinishReason.STOP, message, None, timings, 1))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_parts_of_a_message_are_its_bytes(message: Message) -> None:
    parts = list(message_parts.parts(message))
    assert joined(parts) == proto(message)
    assert all(part.ByteSize() < 2 * MEGABYTE for part in parts)
    assert len({part.total_bytes for part in parts}) == 1


@pytest.mark.parametrize("message", MESSAGES)
def test_the_parts_come_before_finished_which_says_so(message: Message) -> None:
    event = finished(message)
    parts = list(message_parts.before(event))
    assert joined(part.message_part for part in parts) == proto(message)
    assert {part.sequence for part in parts} == {6}
    end = pb.CompletionEvent()
    convert.event(event, end)
    assert end.sequence == 7
    assert end.finished.message_in_parts
    assert end.finished.message == pb.Message(role=pb.ROLE_ASSISTANT)


@pytest.mark.parametrize(
    "message",
    [
        Message(Role.ASSISTANT, "x" * (3 * MEGABYTE)),
        Message(Role.ASSISTANT, "\N{SNOWMAN}" * MEGABYTE),
        Message(Role.ASSISTANT, "", (ToolCall("c", "f", "{}"),) * 80_000),
    ],
)
def test_a_message_that_fits_is_whole_in_finished(message: Message) -> None:
    event = finished(message)
    assert not list(message_parts.before(event))
    end = pb.CompletionEvent()
    convert.event(event, end)
    assert end.finished.message == proto(message)
    assert end.ByteSize() < 4 * MEGABYTE


def test_many_tool_calls_of_little_text_are_sent_in_parts() -> None:
    message = Message(Role.ASSISTANT, "", (ToolCall("c", "f", "{}"),) * 400_000)
    assert joined(message_parts.parts(message)) == proto(message)
    assert list(message_parts.before(finished(message)))


@pytest.mark.parametrize("message", MESSAGES)
async def test_the_parts_of_a_message_of_a_history_fill_their_pages(message: Message) -> None:
    core = Core()
    await core.commands.create(NewSession("s", messages=[message], system_prompt="p" * MEGABYTE))
    state = await core.sessions.history("s")
    parts: list[pb.MessagePart] = []
    while not parts or parts[-1].offset + len(parts[-1].data) < parts[-1].total_bytes:
        offset = sum(len(part.data) for part in parts)
        part = pages.message_part(state, offset)
        assert part is not None
        response = pb.GetSessionResponse(session=convert.session(state), message_part=part)
        assert response.ByteSize() < 4 * MEGABYTE
        parts.append(part)
    assert joined(parts) == proto(message)
    assert all(len(part.data) > 2 * MEGABYTE for part in parts[:-1])


async def test_a_message_that_fits_a_page_has_no_parts() -> None:
    core = Core()
    await core.commands.create(NewSession("s"))
    assert pages.message_part(await core.sessions.history("s"), 0) is None
    messages = [Message(Role.USER, "x" * (3 * MEGABYTE))]
    await core.commands.create(NewSession("t", messages=messages))
    assert pages.message_part(await core.sessions.history("t"), 0) is None


async def test_a_page_that_begins_within_a_message_needs_the_permission_for_parts() -> None:
    core = Core()
    await core.commands.create(NewSession("s", messages=[MESSAGES[0]]))
    state = await core.sessions.history("s")
    request = pb.GetSessionRequest(
        session_id="s",
        view=pb.SESSION_VIEW_FULL,
        page_size=1,
        page_token=pages.history_page_token(state, 0, 1000),
        allow_message_parts=True,
    )
    page = requests.get_session(request, RequestLimits())
    assert page is not None
    assert (page.first, page.offset) == (0, 1000)
    request.allow_message_parts = False
    with pytest.raises(InvalidRequest, match="allow_message_parts"):
        requests.get_session(request, RequestLimits())
    request.page_token, request.page_size, request.allow_message_parts = "", 0, True
    with pytest.raises(InvalidRequest, match="page_size"):
        requests.get_session(request, RequestLimits())
