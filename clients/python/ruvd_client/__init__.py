"""The Python client of ruvd: sessions with a language model over gRPC.

`Client` blocks, `AsyncClient` is for asyncio; both have the verbs of `ruvd.v1.SessionService` and
give its messages, which are here too.
"""

from ruvd_client.aio import AsyncClient, AsyncCompletion
from ruvd_client.blocking import Client, Completion
from ruvd_client.protocol import DEFAULT_ADDRESS, FieldViolation, RuvdError
from ruvd_client.v1.session_service_pb2 import (
    CompletionEvent,
    ContextWindow,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    Role,
    Session,
    SessionMetrics,
    SessionView,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncClient",
    "AsyncCompletion",
    "Client",
    "Completion",
    "CompletionEvent",
    "ContextWindow",
    "FieldViolation",
    "FinishReason",
    "IfBusy",
    "Message",
    "OnDisconnect",
    "Role",
    "RuvdError",
    "Session",
    "SessionMetrics",
    "SessionView",
]
