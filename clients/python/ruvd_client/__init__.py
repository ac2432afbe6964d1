"""The Python client of ruvd: sessions with a language model over gRPC.

`Client` has blocking calls, `AsyncClient` is for asyncio. Both have the methods of
`ruvd.v1.SessionService` and return its messages, which this package exports, too.
"""

from ruvd_client.batch_calls import BatchItem, BatchOutcome, BatchSummary
from ruvd_client.batches import AsyncBatch, Batch
from ruvd_client.clients import AsyncClient, Client
from ruvd_client.completions import AsyncCompletion, Completion
from ruvd_client.protocol import DEFAULT_ADDRESS, FieldViolation, RuvdError, request, tool_result
from ruvd_client.reasons import ErrorReason
from ruvd_client.security import Tls, Token
from ruvd_client.v1.session_service_pb2 import (
    CompletionEvent,
    ContextWindow,
    Delta,
    FinishReason,
    IfBusy,
    Message,
    OnDisconnect,
    ResponseFormat,
    Role,
    Session,
    SessionMetrics,
    SessionView,
    Tool,
    ToolCall,
    ToolChoiceMode,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncBatch",
    "AsyncClient",
    "AsyncCompletion",
    "Batch",
    "BatchItem",
    "BatchOutcome",
    "BatchSummary",
    "Client",
    "Completion",
    "CompletionEvent",
    "ContextWindow",
    "Delta",
    "ErrorReason",
    "FieldViolation",
    "FinishReason",
    "IfBusy",
    "Message",
    "OnDisconnect",
    "ResponseFormat",
    "Role",
    "RuvdError",
    "Session",
    "SessionMetrics",
    "SessionView",
    "Tls",
    "Token",
    "Tool",
    "ToolCall",
    "ToolChoiceMode",
    "request",
    "tool_result",
]
