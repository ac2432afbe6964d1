"""Conversions between the core's values and the rows of the SQLite schema.

Scalars have columns of their own, for indices and for people with the `sqlite3` tool. Values that
are only read as a whole (labels, a receipt's figures) are JSON. So is `extra`, the fields that few
messages have (tool calls, the answered call, reasoning); it is NULL for a message of text alone.

What is read is checked: a row with a wrong checksum, or one that has no meaning, is DataCorrupted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ruvd.core.errors import DataCorrupted
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
from ruvd.core.tenants import own
from ruvd.stores import compaction_fields
from ruvd.stores import figures as figures_json
from ruvd.stores.sqlite import checksums
from ruvd.stores.sqlite.checksums import Row
from ruvd.stores.sqlite.sealing import Opener, Sealer

# What the conversion of a damaged row raises. One of damaged text is a ValueError.
_NO_MEANING = (ValueError, TypeError, LookupError, AttributeError)
_NO_MESSAGE = Message(Role.ASSISTANT)


def session_columns(session: Session, end_bytes: int, sealer: Sealer | None = None) -> Row:
    """Returns the columns of `sessions` after `pk` up to the checksum, and the compaction's."""
    window, usage = session.context_window, session.usage
    columns = (
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
    compaction: str | bytes | None = compaction_fields.to_text(session, with_summary=True)
    if sealer is not None:
        if isinstance(compaction, str):
            compaction = sealer.compaction(session.id, compaction)
        columns = _seal_session(columns, compaction, sealer)
    return (*columns, checksums.of_session(columns, compaction), compaction)


def _seal_session(columns: Row, compaction: str | bytes | None, sealer: Sealer) -> Row:
    *others, labels, system_prompt = columns
    if labels != "{}":
        labels = sealer.labels(columns[0], labels)
    head = checksums.session_head((*others, labels, system_prompt), compaction)
    return (*others, labels, sealer.system_prompt(head, system_prompt))


def to_session(row: Row, opener: Opener | None) -> Session:
    """Returns the session of a complete row of `sessions`. Raises DataCorrupted."""
    try:
        if checksums.is_right(row[24], checksums.of_session(row[1:24], row[27])):
            return _session(row if opener is None else _open_session(row, opener))
    except _NO_MEANING:
        pass
    raise damaged(row[1], "its record")


def _open_session(row: Row, opener: Opener) -> Row:
    head = checksums.session_head(row[1:24], row[27])
    system_prompt = opener.system_prompt(row[0], head, row[23])
    labels = opener.labels(row[0], row[1], row[22])
    compaction = None if row[27] is None else opener.compaction(row[0], row[1], row[27])
    return (*row[:22], labels, system_prompt, *row[24:27], compaction)


def to_labels(
    branch: int, session_id: str, column: str, opener: Opener | None
) -> Mapping[str, str] | None:
    """Returns the labels of a session's column, or None if it is damaged."""
    try:
        text = column if opener is None else opener.labels(branch, session_id, column)
        labels = json.loads(text)
    except _NO_MEANING:
        return None
    return labels if isinstance(labels, dict) else None


def damaged(session_id: object, what: str) -> DataCorrupted:
    """Returns the error for damaged data of a session, whose id may be damaged itself."""
    text = ascii(session_id).strip("'")
    return DataCorrupted(
        f"stored data of the session {own(text)!r} is damaged: {what}", session_id=text
    )


def _session(row: Row) -> Session:
    session = Session(
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
    return compaction_fields.with_fields(session, row[27])


def extra_column(message: Message) -> str | None:
    """Returns the fields besides role and content as JSON, or None if the message has none."""
    has_more = message.tool_calls or message.tool_call_id or message.reasoning
    if not (has_more or message.engine_data or message.pinned):
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
    if message.pinned:
        fields["pinned"] = True
    return json.dumps(fields, ensure_ascii=False)


def _call(call: ToolCall) -> list[str]:
    values = [call.id, call.name, call.arguments]
    return [*values, call.engine_data] if call.engine_data else values


def to_message(session_id: str, row: Row, opener: Opener | None = None) -> Message:
    """Takes (branch, exchange, position, role, content, extra, checksum). Raises DataCorrupted."""
    branch, exchange, position, role, content, extra, checksum = row
    try:
        place = branch, exchange, position
        if checksums.is_right(checksum, checksums.of_message(place, role, content, extra)):
            if opener is not None:
                content, extra = opener.message(place, role, content, extra)
            return _message(role, content, extra)
    except _NO_MEANING:
        pass
    raise damaged(session_id, f"its message {position}")


def _message(role: str, content: str, extra: str | None = None) -> Message:
    if not isinstance(content, str):  # sealed, in a store that has been opened since
        raise TypeError("the content is no text")
    if extra is None:
        return Message(Role(role), content)
    fields = json.loads(extra)
    calls = tuple(ToolCall(*call) for call in fields.pop("tool_calls", ()))
    return Message(Role(role), content, calls, **fields)


def figures_column(finished: Finished, *, with_message: bool) -> str:
    """Returns a `Finished` as JSON; `with_message` if the history does not hold its message."""
    message = finished.message
    stored = (message.role.value, message.content, extra_column(message)) if with_message else None
    return figures_json.to_json(finished, stored)


def record_columns(
    record: IdempotencyRecord,
    branch: int,
    message: int | None,
    figures: str | None,
    *,
    creates: bool,
    sealer: Sealer | None = None,
) -> Row:
    """Returns the columns of `receipts` after `pk`."""
    columns: Row = (
        branch,
        record.request_id,
        int(creates),
        record.digest,
        record.completion_id,
        record.last_sequence,
        message,
        figures,
    )
    if sealer is not None:
        sealed = sealer.record(columns, record.digest, figures)
        columns = (*columns[:3], b"", *columns[4:7], sealed)
    return (*columns, checksums.of_record(columns))


def to_record(session_id: str, row: Row, answer: Row, opener: Opener | None) -> IdempotencyRecord:
    """Takes a row of `receipts` after `pk`, and of its message as `to_message` does.

    Raises DataCorrupted.
    """
    return _record(
        session_id,
        row,
        lambda kept: _message(*kept) if kept else to_message(session_id, answer, opener),
        opener,
    )


def to_turn(session_id: str, position: int, row: Row, opener: Opener | None) -> StoredTurn:
    """Takes the answer's position, and a row of `receipts` after `pk`. Raises DataCorrupted."""
    record = _record(session_id, row, lambda _: _NO_MESSAGE, opener)
    if record.finished is None:
        raise damaged(session_id, f"its record of the completion {record.completion_id!a}")
    return StoredTurn(position, record.completion_id, record.finished)


def _record(
    session_id: str,
    row: Row,
    to_answer: Callable[[Sequence[Any] | None], Message],
    opener: Opener | None,
) -> IdempotencyRecord:
    columns, checksum = row[:-1], row[-1]
    _, request_id, _, digest, completion_id, last_sequence, _, figures = columns
    try:
        if not checksums.is_right(checksum, checksums.of_record(columns)):
            raise damaged(session_id, f"its record of the request {request_id!a}")
        if opener is not None:
            digest, figures = opener.record(columns)
        if figures is None:
            return IdempotencyRecord(request_id, digest, completion_id, last_sequence, None)
        finished = figures_json.to_finished(figures, to_answer)
    except _NO_MEANING as error:
        raise damaged(session_id, f"its record of the request {request_id!a}") from error
    return IdempotencyRecord(request_id, digest, completion_id, last_sequence, finished)
