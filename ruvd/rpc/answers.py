"""Conversion of answers of other replicas, back from protos to values of the core."""

from google.protobuf.duration_pb2 import Duration

from ruvd.core import model
from ruvd.rpc import convert
from ruvd.v1 import session_service_pb2 as pb

_FINISH_REASONS = {proto: reason for reason, proto in convert.FINISH_REASONS.items()}


def finished(proto: pb.Finished) -> model.Finished:
    """Converts a Finished whose message is whole. An unknown finish reason counts as STOP."""
    timings = proto.timings
    return model.Finished(
        finish_reason=_FINISH_REASONS.get(proto.finish_reason, model.FinishReason.STOP),
        message=_message(proto.message),
        usage=_usage(proto.usage) if proto.HasField("usage") else None,
        timings=model.Timings(
            queue_seconds=_seconds(timings.queue),
            time_to_first_token_seconds=_seconds(timings.time_to_first_token)
            if timings.HasField("time_to_first_token")
            else None,
            total_seconds=_seconds(timings.total),
            prefill_seconds=_seconds(timings.prefill) if timings.HasField("prefill") else None,
        ),
        exchange_count=proto.exchange_count,
        raw_finish_reason=proto.raw_finish_reason,
    )


def _message(proto: pb.Message) -> model.Message:
    return model.Message(
        convert.ROLES.get(proto.role, model.Role.ASSISTANT),
        proto.content,
        tuple(
            model.ToolCall(call.id, call.name, call.arguments, call.engine_data)
            for call in proto.tool_calls
        ),
        proto.tool_call_id,
        proto.reasoning,
        proto.engine_data,
        proto.pinned,
    )


def _usage(proto: pb.Usage) -> model.Usage:
    cached = proto.cached_tokens if proto.HasField("cached_tokens") else None
    return model.Usage(proto.prompt_tokens, cached, proto.completion_tokens)


def _seconds(proto: Duration) -> float:
    return proto.seconds + proto.nanos / 1e9
