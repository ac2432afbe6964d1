"""Model to proto, and the enums both ways. Reading requests is `ruvd.rpc.requests`."""

from __future__ import annotations

import base64

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from ruvd.core import model
from ruvd.core.completions.batch import BatchOutcome, BatchSummary
from ruvd.core.model import Message, Role, Session
from ruvd.core.options import ToolChoiceMode
from ruvd.core.ports.store import StoreCounts
from ruvd.core.sessions.registry import SessionState
from ruvd.core.statistics import Statistics
from ruvd.v1 import session_service_pb2 as pb

# What the wire can say at most: 10,000 years, and the end of the year 9999.
_MAX_DURATION = 315_576_000_000
_MAX_TIMESTAMP = 253_402_300_799

IF_BUSY = {
    pb.IF_BUSY_UNSPECIFIED: model.IfBusy.QUEUE,
    pb.IF_BUSY_QUEUE: model.IfBusy.QUEUE,
    pb.IF_BUSY_REJECT: model.IfBusy.REJECT,
    pb.IF_BUSY_INTERRUPT: model.IfBusy.INTERRUPT,
}
ON_DISCONNECT = {
    pb.ON_DISCONNECT_UNSPECIFIED: model.OnDisconnect.CANCEL,
    pb.ON_DISCONNECT_CANCEL: model.OnDisconnect.CANCEL,
    pb.ON_DISCONNECT_CONTINUE: model.OnDisconnect.CONTINUE,
}
ROLES = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
ROLE_PROTOS = {role: proto for proto, role in ROLES.items()}
RENDERINGS = {
    pb.RENDERING_MESSAGES: model.Rendering.MESSAGES,
    pb.RENDERING_TRANSCRIPT: model.Rendering.TRANSCRIPT,
}
RENDERING_PROTOS = {rendering: proto for proto, rendering in RENDERINGS.items()}
TOOL_CHOICE_MODES = {
    pb.TOOL_CHOICE_MODE_AUTO: ToolChoiceMode.AUTO,
    pb.TOOL_CHOICE_MODE_NONE: ToolChoiceMode.NONE,
    pb.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceMode.REQUIRED,
}
FINISH_REASONS = {
    model.FinishReason.STOP: pb.FINISH_REASON_STOP,
    model.FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    model.FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    model.FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


def page_token(cursor: int) -> str:
    """The opaque token for a cursor; empty for none."""
    return base64.urlsafe_b64encode(str(cursor).encode()).decode() if cursor else ""


def session(state: SessionState, *, listed: bool = False) -> pb.Session:
    """A session for the wire; in a list without its system prompt, which may be long."""
    of: Session = state.session
    window = of.context_window
    return pb.Session(
        id=of.id,
        create_time=_timestamp(of.create_time),
        last_used_time=_timestamp(of.last_used_time),
        expire_time=None if state.in_use else _timestamp(of.expire_time),
        message_count=of.message_count,
        exchange_count=of.exchange_count,
        system_prompt="" if listed else of.system_prompt,
        messages=[message(each) for each in state.messages or ()],
        labels=of.labels,
        context_window=pb.ContextWindow(
            keep_exchanges=window.keep_exchanges,
            max_exchanges=window.max_exchanges,
            max_tokens=window.max_tokens,
            rendering=RENDERING_PROTOS[window.rendering],
        ),
        parent_id=of.parent_id,
        running_completion_id=state.running_completion_id,
        usage=usage(of.usage),
        model=of.model,
        idle_timeout=duration(of.idle_timeout_seconds),
    )


def event(of: model.CompletionEvent, into: pb.CompletionEvent) -> None:
    """A completion's event for the wire, written where it goes out."""
    into.sequence = of.sequence
    match of.event:
        case model.Delta(tool_call=None) as delta:
            if delta.reasoning:
                into.delta.reasoning = delta.reasoning
            else:
                into.delta.text = delta.text
        case model.Delta(tool_call=model.ToolCallDelta() as call):
            piece = into.delta.tool_call
            piece.index, piece.id, piece.name = call.index, call.id, call.name
            piece.arguments = call.arguments
        case model.Started() as started:
            told = into.started
            told.completion_id, told.session_id = started.completion_id, started.session_id
            told.session_created, told.model = started.session_created, started.model
            told.context_messages = started.context_messages
            told.context_trimmed = started.context_trimmed
        case model.Finished() as finished:
            _finished(finished, into.finished)


def batch_result(of: BatchOutcome, error: Status | None) -> pb.BatchCompleteResponse:
    """The outcome of an item for the wire; `error` is the status of its error, if it has one."""
    result = pb.BatchResult(index=of.index, error=error)
    if of.finished:
        told = result.completion
        told.completion_id, told.session_id, told.model = of.completion_id, of.session_id, of.model
        _finished(of.finished, told.finished)
    return pb.BatchCompleteResponse(result=result)


def batch_summary(of: BatchSummary) -> pb.BatchCompleteResponse:
    """What came of a batch, for the wire."""
    return pb.BatchCompleteResponse(
        summary=pb.BatchSummary(
            succeeded=of.succeeded,
            failed=of.failed,
            usage=usage(of.usage),
            wall_time=duration(of.wall_seconds),
            total_latency=duration(of.latency_seconds),
        )
    )


def _finished(of: model.Finished, into: pb.Finished) -> None:
    into.finish_reason = FINISH_REASONS[of.finish_reason]
    _message(of.message, into.message)
    if of.usage is not None:
        into.usage.CopyFrom(usage(of.usage))
    timings, told = of.timings, into.timings
    _duration(timings.queue_seconds, told.queue)
    _duration(timings.total_seconds, told.total)
    if timings.time_to_first_token_seconds is not None:
        _duration(timings.time_to_first_token_seconds, told.time_to_first_token)
    if timings.prefill_seconds is not None:
        _duration(timings.prefill_seconds, told.prefill)
    into.exchange_count = of.exchange_count


def message(of: Message) -> pb.Message:
    """A message for the wire."""
    told = pb.Message()
    _message(of, told)
    return told


def _message(of: Message, into: pb.Message) -> None:
    into.role = ROLE_PROTOS[of.role]
    into.content = of.content
    if of.tool_calls:
        into.tool_calls.extend(
            pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
            for call in of.tool_calls
        )
    if of.tool_call_id:
        into.tool_call_id = of.tool_call_id
    if of.reasoning:
        into.reasoning = of.reasoning


def usage(of: model.Usage) -> pb.Usage:
    """Token counts for the wire."""
    return pb.Usage(
        prompt_tokens=of.prompt_tokens,
        cached_tokens=of.cached_tokens,
        completion_tokens=of.completion_tokens,
    )


def duration(seconds: float | None) -> Duration | None:
    """A duration for the wire; None stays unset."""
    if seconds is None:
        return None
    told = Duration()
    _duration(seconds, told)
    return told


def _duration(seconds: float, into: Duration) -> None:
    whole, nanos = divmod(round(min(seconds, _MAX_DURATION) * 1e9), 1_000_000_000)
    into.seconds, into.nanos = whole, nanos


def metrics(counts: StoreCounts, statistics: Statistics) -> pb.SessionMetrics:
    """The daemon's figures for the wire; what is unknown stays unset."""
    session, stateless = statistics.session, statistics.stateless
    return pb.SessionMetrics(
        total_sessions=counts.sessions,
        active_sessions=counts.active,
        avg_messages_per_session=counts.messages / counts.sessions if counts.sessions else 0.0,
        cache_hit_rate=statistics.cache_hit_rate,
        avg_session_latency=duration(session.mean),
        avg_stateless_latency=duration(stateless.mean),
        session_completions=session.count,
        stateless_completions=stateless.count,
        avg_latency_reduction=statistics.latency_reduction,
        avg_prefill_reduction=statistics.prefill_reduction,
    )


def _timestamp(seconds: float) -> Timestamp:
    proto = Timestamp()
    proto.FromNanoseconds(round(min(seconds, _MAX_TIMESTAMP) * 1e9))
    return proto
