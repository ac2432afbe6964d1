"""The reads of the SQLite store: each function implements one `Store` method on a connection.

A history is read branch by branch from its end towards its beginning. Reading stops at the branch
that holds the first exchange that is needed, so that the history before it costs nothing. A cursor
that is not read to its end is closed, because it holds its view of the database while it is open,
and an error holds it with its traceback.
"""

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from ruvd.core import tenants
from ruvd.core.errors import DataCorrupted
from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.ports.store import MAX_PAGE_BYTES, HistoryPart, StoreCounts
from ruvd.stores.sqlite.checksums import Row
from ruvd.stores.sqlite.rows import damaged, to_message, to_record, to_session
from ruvd.stores.sqlite.sealing import opener_of, possible_label_rows

_T = TypeVar("_T")

_UNBOUNDED = 2**62
_RECORDS = (
    "SELECT s.id, r.*, m.branch, m.exchange, m.position, m.role, m.content, m.extra, m.checksum"
    " FROM receipts r JOIN sessions s ON s.pk = r.session"
    " LEFT JOIN messages m ON m.pk = r.message WHERE "
)

_BY_LABEL = (
    "SELECT sessions.* FROM labels CROSS JOIN sessions ON sessions.pk = labels.session"
    " WHERE labels.key = ? AND labels.value = ? AND labels.session > ?"
    " AND (sessions.expire_time > ? OR sessions.id IN (SELECT value FROM json_each(?)))"
    " ORDER BY labels.session"
)
# While a store is being sealed, a label has a row of either form.
_BY_EITHER_LABEL = _BY_LABEL.replace(
    "labels.key = ? AND labels.value = ?", "(labels.key, labels.value) IN (VALUES (?, ?), (?, ?))"
)


def of_session(
    session_id: str, read: Callable[[sqlite3.Connection], _T]
) -> Callable[[sqlite3.Connection], _T]:
    """Returns the read, which raises DataCorrupted where SQLite finds the session's pages damaged.

    Otherwise one damaged session would take the store down for all of them.
    """

    def checked(db: sqlite3.Connection) -> _T:
        try:
            return read(db)
        except UnicodeDecodeError as fault:  # a message of SQLite's names damaged text
            raise damaged(session_id, "its tables") from fault
        except sqlite3.DatabaseError as fault:
            if getattr(fault, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            raise damaged(session_id, f"its pages ({fault})") from fault

    return checked


def get(db: sqlite3.Connection, session_id: str) -> Session | None:
    """See `Store.get`."""
    row = db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return to_session(row, opener_of(db)) if row else None


def exchanges(db: sqlite3.Connection, session_id: str, first: int) -> list[Exchange]:
    """See `Store.exchanges`."""
    found = db.execute(
        "SELECT pk, message_count, exchange_count FROM sessions WHERE id = ?", (session_id,)
    ).fetchone()
    if found is None or first >= found[2]:
        return []
    branch, message_count, _ = found
    last, end = _UNBOUNDED, _UNBOUNDED
    parts: list[list[Row]] = []
    while branch is not None:
        parts.append(
            db.execute(
                "SELECT ?1, exchange, position, role, content, extra, checksum FROM messages"
                " WHERE branch = ?1 AND exchange BETWEEN ?2 AND ?3 AND position < ?4"
                " ORDER BY exchange, position",
                (branch, first, last, end),
            ).fetchall()
        )
        branch, end, last = fork_of(db, branch)
        if last < first:
            break
    rows = [row for part in reversed(parts) for row in part]
    _check_places(session_id, rows, first, message_count)
    opener = opener_of(db)
    return [
        tuple(to_message(session_id, row, opener) for row in group)
        for _, group in groupby(rows, key=lambda row: row[1])
    ]


def messages(
    db: sqlite3.Connection, session_id: str, first: int, max_messages: int, max_bytes: int
) -> HistoryPart | None:
    """See `Store.messages`."""
    found = db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if found is None:
        return None
    opener = opener_of(db)
    session = to_session(found, opener)
    branch, end = found[0], session.message_count
    parts: list[tuple[int, int, int]] = []
    while branch is not None and end > first:
        parent, base, _ = fork_of(db, branch)
        parts.append((branch, max(first, base), end))
        branch, end = parent, min(end, base)
    messages: list[Message] = []
    size = 0
    for branch, start, end in reversed(parts):
        rows = db.execute(
            "SELECT ?1, exchange, position, role, content, extra, checksum FROM messages"
            " WHERE branch = ?1 AND exchange >= ?2 AND position >= ?3 AND position < ?4"
            " ORDER BY exchange, position LIMIT ?5",
            (
                branch,
                _exchange_at(db, branch, start, session.exchange_count),
                start,
                end,
                max_messages - len(messages),
            ),
        )
        with closing(rows):
            for row in rows:
                message = to_message(session_id, row, opener)
                if row[2] != first + len(messages):
                    raise damaged(session_id, f"its message {first + len(messages)} is missing")
                size += message.size_bytes
                if messages and size > max_bytes:
                    return HistoryPart(session, messages)
                messages.append(message)
    if len(messages) < min(max_messages, session.message_count - first):
        raise damaged(session_id, f"its message {first + len(messages)} is missing")
    return HistoryPart(session, messages)


def _check_places(session_id: str, rows: Sequence[Row], first: int, message_count: int) -> None:
    """Raises DataCorrupted if a message from the exchange `first` on is missing."""
    start = rows[0][2] if rows and first else 0
    if [row[2] for row in rows] != list(range(start, message_count)) or rows[0][1] != first:
        raise damaged(session_id, f"messages from its exchange {first} on are missing")


def _exchange_at(db: sqlite3.Connection, branch: int, position: int, exchange_count: int) -> int:
    """Returns an exchange that begins at or shortly before the position, by binary search.

    No index of a branch begins with the position; but positions grow with the exchanges.
    """

    def first_position(exchange: int) -> int:
        row = db.execute(
            "SELECT position FROM messages WHERE branch = ? AND exchange >= ?"
            " ORDER BY exchange, position LIMIT 1",
            (branch, exchange),
        ).fetchone()
        return int(row[0]) if row else _UNBOUNDED

    after = bisect_right(range(exchange_count), position, key=first_position)
    return max(after - 1, 0)


def size_at(db: sqlite3.Connection, session_id: str, exchange_count: int) -> tuple[int, int]:
    """See `Store.size_at`."""
    branch = branch_of(db, session_id)
    last, end = exchange_count - 1, _UNBOUNDED
    while branch is not None:
        row = db.execute(
            "SELECT position, end_bytes FROM messages"
            " WHERE branch = ? AND exchange <= ? AND position < ?"
            " ORDER BY exchange DESC, position DESC LIMIT 1",
            (branch, last, end),
        ).fetchone()
        if row:
            return (row[0] + 1, row[1])
        branch, end, base_exchange = fork_of(db, branch)
        last = min(last, base_exchange)
    return (0, 0)


def page(
    db: sqlite3.Connection,
    after: int,
    limit: int,
    labels: Mapping[str, str],
    now: float,
    active_or_in_turn: Collection[str],
    tenant: str | None,
) -> tuple[list[Session], int, list[DataCorrupted]]:
    """See `Store.list`. Returns also the errors of the sessions that are damaged and left out."""
    in_turn = json.dumps(list(active_or_in_turn))
    if labels:
        # The index finds the rows with one of the labels; the others are compared below.
        wanted = possible_label_rows(db, *next(iter(labels.items())))
        rows = db.execute(
            _BY_LABEL if len(wanted) == 1 else _BY_EITHER_LABEL,
            (*(part for pair in wanted for part in pair), after, now, in_turn),
        )
    else:
        rows = db.execute(
            # The plus keeps the planner from using another index than the primary key's, which
            # has the order of the page.
            "SELECT * FROM sessions WHERE pk > ?"
            " AND (+expire_time > ? OR +id IN (SELECT value FROM json_each(?))) ORDER BY pk",
            (after, now, in_turn),
        )
    opener = opener_of(db)
    sessions: list[Session] = []
    errors: list[DataCorrupted] = []
    size = 0
    with closing(rows):
        for row in rows:
            try:
                session = to_session(row, opener)
            except DataCorrupted as error:
                errors.append(error.with_traceback(None))
                after = row[0]
                continue
            if tenant is not None and tenants.tenant_of(session.id) != tenant:
                continue
            if any(session.labels.get(key) != value for key, value in labels.items()):
                continue
            if len(sessions) == limit or size >= MAX_PAGE_BYTES:
                return sessions, after, errors
            # The checksum of a row is also that of its system prompt, so that is read, too.
            sessions.append(replace(session, system_prompt=""))
            size += session.labels_bytes
            after = row[0]
    return sessions, 0, errors


def idempotency_record(
    db: sqlite3.Connection, session_id: str, request_id: str
) -> IdempotencyRecord | None:
    """See `Store.idempotency_record`."""
    if not request_id:
        return None
    found = _record(db, "s.id = ? AND r.request_id = ?", session_id, request_id)
    return found[1] if found else None


def completion(db: sqlite3.Connection, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.completion`."""
    return _record(db, "r.completion_id = ? AND r.completion_id <> ''", completion_id)


def created_by(db: sqlite3.Connection, request_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.created_by`."""
    newest = "r.request_id = ? AND r.creates ORDER BY r.session DESC LIMIT 1"
    return _record(db, newest, request_id)


def counts(
    db: sqlite3.Connection, now: float, active_or_in_turn: Collection[str], tenant: str | None
) -> StoreCounts:
    """See `Store.counts`. Reads no messages."""
    # What follows the prefix of a tenant's id has no slash.
    (sessions, messages, expired) = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(message_count), 0), COALESCE(SUM(expire_time <= ?2"
        " AND id NOT IN (SELECT value FROM json_each(?3))), 0) FROM sessions WHERE ?1 IS NULL"
        " OR (substr(id, 1, length(?1)) = ?1 AND NOT instr(substr(id, length(?1) + 1), '/'))",
        (
            None if tenant is None else tenants.prefix(tenant),
            now,
            json.dumps(list(active_or_in_turn)),
        ),
    ).fetchone()
    return StoreCounts(sessions, sessions - expired, messages)


def branch_of(db: sqlite3.Connection, session_id: str) -> int | None:
    """Returns the branch that new messages of the session join, which is the session's `pk`."""
    row = db.execute("SELECT pk FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return row[0] if row else None


def fork_of(db: sqlite3.Connection, branch: int) -> tuple[int | None, int, int]:
    """Returns (parent branch, number of messages shared with it, exchange of the last of them).

    The parent is None for a branch that is not a fork.
    """
    row = db.execute(
        "SELECT parent, base_position, base_exchange FROM forks WHERE branch = ?", (branch,)
    ).fetchone()
    return (row[0], row[1], row[2]) if row else (None, 0, -1)


def _record(
    db: sqlite3.Connection, condition: str, *values: str
) -> tuple[str, IdempotencyRecord] | None:
    row = db.execute(_RECORDS + condition, values).fetchone()
    return (row[0], to_record(row[0], row[2:11], row[11:], opener_of(db))) if row else None
