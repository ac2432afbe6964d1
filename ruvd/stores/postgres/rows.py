"""Conversions between the core's values and the rows of the PostgreSQL schema."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeAlias

from ruvd.core.model import (
    ContextWindow,
    Finished,
    IdempotencyRecord,
    Message,
    Rendering,
    Role,
    Session,
    ToolCall,
    Usage,
)
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores import compaction_fields
from ruvd.stores import figures as figures_json

Row: TypeAlias = tuple[Any, ...]
_NO_MESSAGE = Message(Role.ASSISTANT)

_COLUMNS = (
    "id",
    "create_time",
    "last_used_time",
    "idle_timeout_seconds",
    "expire_time",
    "message_count",
    "exchange_count",
    "size_bytes",
    "window_start",
    "context_tokens",
    "context_bytes",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "keep_exchanges",
    "max_exchanges",
    "max_tokens",
    "rendering",
    "parent_id",
    "model",
    "labels",
    "compaction",
    "summary",
    "system_prompt",
    "label_pairs",
)
SESSION_COLUMNS = ", ".join(_COLUMNS)
# The parameters that `session_values` gives, in the order of the columns.
SESSION_VALUES = ", ".join(f"%(new_{name})s" for name in _COLUMNS)
# What `to_session` takes; without the summary and the system prompt for lists.
SESSION_FIELDS = SESSION_COLUMNS.removesuffix("label_pairs") + "epoch"
LISTED_FIELDS = (
    SESSION_FIELDS.removesuffix("summary, system_prompt, epoch") + "''::bytea, ''::bytea, epoch"
)
FIELD_COUNT = len(SESSION_FIELDS.split(","))


def session_values(session: Session) -> dict[str, Any]:
    """Returns the parameters of SESSION_VALUES."""
    window, usage = session.context_window, session.usage
    values = (
        session.id,
        session.create_time,
        session.last_used_time,
        session.idle_timeout_seconds,
        session.expire_time,
        session.message_count,
        session.exchange_count,
        session.size_bytes,
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
        session.model.encode(),
        json.dumps(dict(session.labels)),
        compaction_fields.to_text(session, with_summary=False),
        session.summary.text.encode() if session.summary else b"",
        session.system_prompt.encode(),
        label_pairs(session.labels),
    )
    return {f"new_{name}": value for name, value in zip(_COLUMNS, values, strict=True)}


def label_pairs(labels: Mapping[str, str]) -> list[str]:
    """Returns a short text for each label, by which sessions are found."""
    return [sha256(json.dumps(pair).encode()).hexdigest()[:32] for pair in labels.items()]


def to_session(row: Row) -> Session:
    """Takes the values of SESSION_FIELDS."""
    session = Session(
        id=row[0],
        create_time=row[1],
        last_used_time=row[2],
        idle_timeout_seconds=row[3],
        message_count=row[5],
        exchange_count=row[6],
        size_bytes=row[7],
        window_start=row[8],
        context_tokens=row[9],
        context_bytes=row[10],
        usage=Usage(row[11], row[12], row[13]),
        context_window=ContextWindow(row[14], row[15], row[16], Rendering(row[17])),
        parent_id=row[18],
        model=row[19].decode(),
        labels=json.loads(row[20]),
        system_prompt=row[23].decode(),
        version=row[24],
    )
    return compaction_fields.with_fields(session, row[21], row[22].decode())


def extra_column(message: Message) -> str | None:
    """Returns the fields besides role and content as JSON, or None if the message has none."""
    has_more = message.tool_calls or message.tool_call_id or message.reasoning
    if not (has_more or message.engine_data or message.pinned):
        return None
    calls = [[call.id, call.name, call.arguments, call.engine_data] for call in message.tool_calls]
    fields = [calls, message.tool_call_id, message.reasoning, message.engine_data]
    return json.dumps([*fields, True] if message.pinned else fields)


def to_message(row: Row) -> Message:
    """Takes (role, content, extra)."""
    role, content, extra = row
    if extra is None:
        return Message(Role(role), content.decode())
    calls, *others = json.loads(extra)
    return Message(Role(role), content.decode(), tuple(ToolCall(*call) for call in calls), *others)


def figures_column(finished: Finished, *, with_message: bool) -> str:
    """Returns a `Finished` as JSON; `with_message` if the history does not hold its message."""
    message = finished.message
    stored = (message.role.value, message.content, extra_column(message)) if with_message else None
    return figures_json.to_json(finished, stored)


RECORD_FIELDS = (
    "r.request_id, r.digest, r.completion_id, r.last_sequence, r.figures,"
    " m.role, m.content, m.extra"
)
RECORD_COUNT = len(RECORD_FIELDS.split(","))


def to_record(row: Row) -> IdempotencyRecord:
    """Takes the values of RECORD_FIELDS."""
    request_id, digest, completion_id, last_sequence, figures, role, content, extra = row

    def answer(kept: Sequence[Any] | None) -> Message:
        return to_message((kept[0], kept[1].encode(), kept[2]) if kept else (role, content, extra))

    finished = None if figures is None else figures_json.to_finished(figures, answer)
    return IdempotencyRecord(request_id.decode(), digest, completion_id, last_sequence, finished)


def to_turn(row: Row) -> StoredTurn:
    """Takes (message_position, completion_id, figures)."""
    position, completion_id, figures = row
    finished = figures_json.to_finished(figures, lambda _: _NO_MESSAGE)
    return StoredTurn(position, completion_id, finished)
