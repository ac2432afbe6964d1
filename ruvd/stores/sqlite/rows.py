"""Conversions between the core's values and the rows of the SQLite schema.

Scalars have columns of their own, for indices and for people with the `sqlite3` tool. Values that
are only read as a whole (labels, a receipt's figures) are JSON. So is `extra`, the fields that few
messages have (tool calls, the answered call, reasoning); it is NULL for a message of text alone.
"""

import json
from typing import Any, TypeAlias

from ruvd.core.model import (
    ContextWindow,
    Finished,
    FinishReason,
    IdempotencyRecord,
    Message,
    Rendering,
    Role,
    Session,
    Timings,
    ToolCall,
    Usage,
)

Row: TypeAlias = tuple[Any, ...]


def session_columns(session: Session, end_bytes: int) -> Row:
    """Returns the columns of `sessions` after `pk`, in the order of the schema."""
    window, usage = session.context_window, session.usage
    return (
        session.id,
        session.create_time,
        session.last_used_time,
        session.idle_timeout_seconds,
        session.expire_time,
        session.message_count,
        session.exchange_count,
        session.size_bytes,
        end_bytes,
        session.window_start,
        session.context_tokens,
        session.context_bytes,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        window.keep_exchanges,
        window.max_exchanges,
        window.max_tokens,
        window.rendering.value,
        session.parent_id,
        session.model,
        json.dumps(dict(session.labels)) if session.labels else "{}",
        session.system_prompt,
    )


def to_session(row: Row) -> Session:
    """Returns the session of a complete row of `sessions`."""
    return Session(
        id=row[1],
        create_time=row[2],
        last_used_time=row[3],
        idle_timeout_seconds=row[4],
        message_count=row[6],
        exchange_count=row[7],
        size_bytes=row[8],
        window_start=row[10],
        context_tokens=row[11],
        context_bytes=row[12],
        usage=Usage(row[13], row[14], row[15]),
        context_window=ContextWindow(row[16], row[17], row[18], Rendering(row[19])),
        parent_id=row[20],
        model=row[21],
        labels=json.loads(row[22]),
        system_prompt=row[23],
    )


def extra_column(message: Message) -> str | None:
    """Returns the fields besides role and content as JSON, or None if the message has none."""
    if not (message.tool_calls or message.tool_call_id or message.reasoning or message.engine_data):
        return None
    fields: dict[str, Any] = {}
    if message.tool_calls:
        fields["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        fields["reasoning"] = message.reasoning
    if message.engine_data:
        fields["engine_data"] = message.engine_data
    return json.dumps(fields, ensure_ascii=False)


def _call(call: ToolCall) -> list[str]:
    values = [call.id, call.name, call.arguments]
    return [*values, call.engine_data] if call.engine_data else values


def to_message(role: str, content: str, extra: str | None = None) -> Message:
    """Returns the message of these columns of `messages`."""
    if extra is None:
        return Message(Role(role), content)
    fields = json.loads(extra)
    calls = tuple(ToolCall(*call) for call in fields.pop("tool_calls", ()))
    return Message(Role(role), content, calls, **fields)


def figures_column(finished: Finished, *, with_message: bool) -> str:
    """Returns a `Finished` as JSON; `with_message` if the history does not hold its message."""
    usage, timings = finished.usage, finished.timings
    figures: dict[str, Any] = {
        "finish_reason": finished.finish_reason.value,
        "usage": usage and [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens],
        "timings": [
            timings.queue_seconds,
            timings.time_to_first_token_seconds,
            timings.total_seconds,
            timings.prefill_seconds,
        ],
        "exchange_count": finished.exchange_count,
    }
    if finished.raw_finish_reason:
        figures["raw_finish_reason"] = finished.raw_finish_reason
    if with_message:
        message = finished.message
        figures["message"] = [message.role.value, message.content, extra_column(message)]
    return json.dumps(figures)


def to_record(row: Row) -> IdempotencyRecord:
    """Takes (request_id, digest, completion_id, last_sequence, figures, role, content, extra)."""
    request_id, digest, completion_id, last_sequence, figures, *message = row
    finished = None
    if figures is not None:
        fields = json.loads(figures)
        finished = Finished(
            finish_reason=FinishReason(fields["finish_reason"]),
            message=to_message(*fields.get("message", message)),
            usage=Usage(*fields["usage"]) if fields["usage"] else None,
            timings=Timings(*fields["timings"]),
            exchange_count=fields["exchange_count"],
            raw_finish_reason=fields.get("raw_finish_reason", ""),
        )
    return IdempotencyRecord(request_id, digest, completion_id, last_sequence, finished)
