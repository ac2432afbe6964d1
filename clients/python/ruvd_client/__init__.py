"""The Python client of ruvd: sessions with a language model over gRPC.

`Client` has blocking calls, `AsyncClient` is for asyncio. Both have the methods of
`ruvd.v1.SessionService` and return its messages, which this package exports, too.
"""

from ruvd_client.async_client import AsyncClient
from ruvd_client.async_completion import AsyncCompletion
from ruvd_client.batch_calls import BatchItem, BatchOutcome, BatchSummary
from ruvd_client.batches import AsyncBatch, Batch
from ruvd_client.client import Client
from ruvd_client.completion import Completion
from ruvd_client.protocol import (
    DEFAULT_ADDRESS,
    CompleteArguments,
    CreateSessionArguments,
    FieldViolation,
    RuvdError,
    request,
    tool_result,
)
from ruvd_client.reasons import ErrorReason
from ruvd_client.security import Tls, Token
from ruvd_client.v1.session_service_pb2 import (
    Compaction,
    CompactSessionResponse,
    CompleteRequest,
    CompletionEvent,
    ContextWindow,
    Delta,
    EngineInfo,
    Finished,
    FinishReason,
    GetServerInfoResponse,
    IfBusy,
    ListModelsResponse,
    Message,
    OnDisconnect,
    Rendering,
    ResponseFormat,
    Role,
    ServerLimits,
    Session,
    SessionMetrics,
    SessionView,
    Started,
    Timings,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoiceMode,
    Usage,
)
from ruvd_client.v1.session_service_pb2 import Completion as CompletionResult

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
    "CompactSessionResponse",
    "Compaction",
    "CompleteArguments",
    "CompleteRequest",
    "Completion",
    "CompletionEvent",
    "CompletionResult",
    "ContextWindow",
    "CreateSessionArguments",
    "Delta",
    "EngineInfo",
    "ErrorReason",
    "FieldViolation",
    "FinishReason",
    "Finished",
    "GetServerInfoResponse",
    "IfBusy",
    "ListModelsResponse",
    "Message",
    "OnDisconnect",
    "Rendering",
    "ResponseFormat",
    "Role",
    "RuvdError",
    "ServerLimits",
    "Session",
    "SessionMetrics",
    "SessionView",
    "Started",
    "Timings",
    "Tls",
    "Token",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoiceMode",
    "Usage",
    "request",
    "tool_result",
]
