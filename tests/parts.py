"""Reads messages that are sent in parts, with nothing but generated code and gRPC's defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from running import RunningDaemon

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc


@asynccontextmanager
async def plain_stub(daemon: RunningDaemon) -> AsyncIterator[Any]:
    """The service as a client with gRPC's default limits calls it."""
    async with grpc.aio.insecure_channel(daemon.socket) as channel:
        yield pb_grpc.SessionServiceStub(channel)


def joined(parts: Iterable[pb.MessagePart]) -> pb.Message:
    """The message of these parts, which must be whole and in order."""
    data, total = b"", 0
    for part in parts:
        assert part.offset == len(data)
        data, total = data + part.data, part.total_bytes
    assert len(data) == total
    return pb.Message.FromString(data)


def answer_of(events: Iterable[pb.CompletionEvent]) -> pb.Message:
    """The message of a completion's Finished, joined from its parts if it was sent so."""
    parts = []
    for event in events:
        if event.HasField("message_part"):
            parts.append(event.message_part)
        elif event.HasField("finished"):
            if event.finished.message_in_parts:
                assert not event.finished.message.content
                return joined(parts)
            assert not parts
            return event.finished.message
    raise AssertionError("the completion has not finished")


async def read_history(stub: Any, session_id: str, page_size: int = 1000) -> list[pb.Message]:
    """The messages of a session, whatever their size."""
    messages: list[pb.Message] = []
    parts: list[pb.MessagePart] = []
    request = pb.GetSessionRequest(
        session_id=session_id,
        view=pb.SESSION_VIEW_FULL,
        page_size=page_size,
        allow_message_parts=True,
    )
    while True:
        page = await stub.GetSession(request)
        assert page.ByteSize() <= 4 << 20
        messages += page.session.messages
        if page.HasField("message_part"):
            assert not page.session.messages
            parts.append(page.message_part)
            if parts[-1].offset + len(parts[-1].data) == parts[-1].total_bytes:
                messages.append(joined(parts))
                parts.clear()
        request.page_token = page.next_page_token
        if not page.next_page_token:
            assert not parts
            assert len(messages) == page.session.message_count
            return messages
