"""Shortcuts for calls of a daemon with nothing but generated code."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from ruvd.v1 import session_service_pb2 as pb


def turn(text: str, session_id: str = "", **fields: Any) -> pb.CompleteRequest:
    """A CompleteRequest with one user message."""
    message = pb.Message(role=pb.ROLE_USER, content=text)
    return pb.CompleteRequest(session_id=session_id, messages=[message], **fields)


async def events(stub: Any, request: pb.CompleteRequest, **call: Any) -> list[pb.CompletionEvent]:
    """All events of a completion; raises AioRpcError if it fails."""
    return [response.event async for response in stub.Complete(request, **call)]


async def say(stub: Any, text: str, session_id: str = "", **fields: Any) -> pb.Finished:
    """Runs one turn to its end and returns `Finished`."""
    return (await events(stub, turn(text, session_id, **fields)))[-1].finished


async def history(stub: Any, session_id: str) -> list[pb.Message]:
    """The messages of a session."""
    request = pb.GetSessionRequest(session_id=session_id, view=pb.SESSION_VIEW_FULL)
    return list((await stub.GetSession(request)).session.messages)


async def contents(stub: Any, session_id: str) -> list[str]:
    """The texts of a session's history."""
    return [message.content for message in await history(stub, session_id)]


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str], float | None]:
    """The reason, invalid fields and retry delay in seconds of a failed call."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    seconds = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return info.reason, [violation.field for violation in bad.field_violations], seconds
