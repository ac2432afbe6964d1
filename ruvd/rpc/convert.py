"""Conversion of values of the core to protos, and of enums both ways.

The conversion of requests is in `ruvd.rpc.requests`.
"""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from ruvd.core import model, tenants
from ruvd.core.completions.batch import BatchOutcome, BatchSummary
from ruvd.core.completions.compaction_calls import CompactionOutcome
from ruvd.core.model import Message, Role, Session
from ruvd.core.options import ToolChoiceMode
from ruvd.core.ports.store import StoreCounts
from ruvd.core.sessions.model import SessionState
from ruvd.core.statistics import Statistics
from ruvd.v1 import session_service_pb2 as pb

# The limits of the protos: a duration of 10,000 years, and the end of the year 9999.
_MAX_DURATION = 315_576_000_000
_MAX_TIMESTAMP = 253_402_300_799
# A larger message is sent in parts before the event or the result that it belongs to.
_MAX_WHOLE_BYTES = 3 << 20
_CALL_BYTES = 32  # what a tool call takes besides its texts, at most
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
COMPACTIONS = {
    pb.COMPACTION_NONE: model.Compaction.NONE,
    pb.COMPACTION_SUMMARY: model.Compaction.SUMMARY,
}
COMPACTION_PROTOS = {compaction: proto for proto, compaction in COMPACTIONS.items()}
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


def session(state: SessionState, *, without_prompt: bool = False) -> pb.Session:
    """Converts a session without its messages; `without_prompt` also without what they say."""
    stored: Session = state.session
    window, summary = stored.context_window, stored.summary
    return pb.Session(
        id=tenants.own(stored.id),
        create_time=_timestamp(stored.create_time),
        last_used_time=_timestamp(stored.last_used_time),
        expire_time=None if state.in_use else _timestamp(stored.expire_time),
        message_count=stored.message_count,
        exchange_count=stored.exchange_count,
        system_prompt="" if without_prompt else stored.system_prompt,
        labels=stored.labels,
        context_window=pb.ContextWindow(
            keep_exchanges=window.keep_exchanges,
            max_exchanges=window.max_exchanges,
            max_tokens=window.max_tokens,
            rendering=RENDERING_PROTOS[window.rendering],
            compaction=COMPACTION_PROTOS[window.compaction],
            keep_first=window.keep_first,
            compact_at=window.compact_at,
        ),
        parent_id=tenants.own(stored.parent_id),
        running_completion_id=tenants.own(state.running_completion_id),
        usage=usage(stored.usage),
        model=stored.model,
        idle_timeout=duration(stored.idle_timeout_seconds),
        compactions=stored.compactions,
        summary=summary.text if summary and not without_prompt else "",
        summary_exchange_count=summary.exchange_count if summary else 0,
        compaction_instruction="" if without_prompt else stored.compaction_instruction,
    )


def compaction(outcome: CompactionOutcome) -> pb.CompactSessionResponse:
    """Converts the outcome of a compaction."""
    return pb.CompactSessionResponse(
        session=session(outcome.state),
        summarized_exchanges=outcome.summarized,
        kept_exchanges=outcome.kept,
        bytes_before=outcome.before_bytes,
        bytes_after=outcome.after_bytes,
        usage=None if outcome.usage is None else usage(outcome.usage),
    )


def event(completion_event: model.CompletionEvent, into: pb.CompletionEvent) -> None:
    """Converts a completion's event into the given proto."""
    into.sequence = completion_event.sequence
    match completion_event.event:
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
            proto = into.started
            proto.completion_id = tenants.own(started.completion_id)
            proto.session_id = tenants.own(started.session_id)
            proto.session_created, proto.model = started.session_created, started.model
            proto.context_messages = started.context_messages
            proto.context_trimmed = started.context_trimmed
            proto.context_summarized = started.context_summarized
        case model.Finished() as finished:
            _finished(finished, into.finished)


def batch_result(outcome: BatchOutcome, error: Status | None) -> pb.BatchCompleteResponse:
    """Converts the outcome of an item; `error` is the status of its error, if any."""
    result = pb.BatchResult(index=outcome.index, error=error)
    if outcome.finished:
        proto = result.completion
        proto.completion_id = tenants.own(outcome.completion_id)
        proto.session_id = tenants.own(outcome.session_id)
        proto.model = outcome.model
        _finished(outcome.finished, proto.finished)
    return pb.BatchCompleteResponse(result=result)


def batch_summary(summary: BatchSummary) -> pb.BatchCompleteResponse:
    """Converts the summary of a batch."""
    return pb.BatchCompleteResponse(
        summary=pb.BatchSummary(
            succeeded=summary.succeeded,
            failed=summary.failed,
            usage=usage(summary.usage),
            wall_time=duration(summary.wall_seconds),
            total_latency=duration(summary.latency_seconds),
        )
    )


def _finished(finished: model.Finished, into: pb.Finished) -> None:
    into.finish_reason = FINISH_REASONS[finished.finish_reason]
    if is_too_large(finished.message):
        into.message.role = ROLE_PROTOS[finished.message.role]
        into.message_in_parts = True
    else:
        message(finished.message, into.message)
    if finished.usage is not None:
        into.usage.CopyFrom(usage(finished.usage))
    timings, proto = finished.timings, into.timings
    _duration(timings.queue_seconds, proto.queue)
    _duration(timings.total_seconds, proto.total)
    if timings.time_to_first_token_seconds is not None:
        _duration(timings.time_to_first_token_seconds, proto.time_to_first_token)
    if timings.prefill_seconds is not None:
        _duration(timings.prefill_seconds, proto.prefill)
    into.exchange_count = finished.exchange_count
    into.raw_finish_reason = finished.raw_finish_reason


def is_too_large(message: Message) -> bool:
    """Tells whether a message is sent in parts, because no response would fit with it."""
    calls = len(message.tool_calls) * _CALL_BYTES
    return message.size_bytes + calls > _MAX_WHOLE_BYTES


def message(stored: Message, into: pb.Message) -> None:
    """Converts a message into the given proto."""
    into.role = ROLE_PROTOS[stored.role]
    into.content = stored.content
    if stored.tool_calls:
        into.tool_calls.extend(
            pb.ToolCall(
                id=call.id,
                name=call.name,
                arguments=call.arguments,
                engine_data=call.engine_data,
            )
            for call in stored.tool_calls
        )
    if stored.tool_call_id:
        into.tool_call_id = stored.tool_call_id
    if stored.reasoning:
        into.reasoning = stored.reasoning
    if stored.engine_data:
        into.engine_data = stored.engine_data
    if stored.pinned:
        into.pinned = True


def usage(usage: model.Usage) -> pb.Usage:
    """Converts token counts."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )


def duration(seconds: float | None) -> Duration | None:
    """Converts a duration; None stays unset."""
    if seconds is None:
        return None
    proto = Duration()
    _duration(seconds, proto)
    return proto


def _duration(seconds: float, into: Duration) -> None:
    whole, nanos = divmod(round(min(seconds, _MAX_DURATION) * 1e9), 1_000_000_000)
    into.seconds, into.nanos = whole, nanos


def metrics(counts: StoreCounts, statistics: Statistics) -> pb.SessionMetrics:
    """Converts the daemon's metrics; unknown figures stay unset."""
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
