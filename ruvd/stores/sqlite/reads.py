"""What is read from the SQLite database: each function is one `Store` method on a connection.

A history is read branch by branch from its end towards its beginning, and the walk stops at the
branch that holds the first exchange asked for: what is before it costs nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from itertools import groupby

from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports.store import StoreCounts
from ruvd.stores.sqlite.rows import Row, message_of, receipt_of, session_of

_END = 2**62


def get(db: sqlite3.Connection, session_id: str) -> Session | None:
    """See `Store.get`."""
    row = db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return session_of(row) if row else None


def exchanges(db: sqlite3.Connection, session_id: str, first: int) -> list[Exchange]:
    """See `Store.exchanges`."""
    branch = branch_of(db, session_id)
    last, end = _END, _END
    parts: list[list[Row]] = []
    while branch is not None:
        parts.append(
            db.execute(
                "SELECT exchange, role, content, extra FROM messages"
                " WHERE branch = ? AND exchange BETWEEN ? AND ? AND position < ?"
                " ORDER BY exchange, position",
                (branch, first, last, end),
            ).fetchall()
        )
        branch, end, last = fork_of(db, branch)
        if last < first:
            break
    rows = [row for part in reversed(parts) for row in part]
    return [
        tuple(message_of(role, content, extra) for _, role, content, extra in group)
        for _, group in groupby(rows, key=lambda row: row[0])
    ]


def size_at(db: sqlite3.Connection, session_id: str, exchange_count: int) -> tuple[int, int]:
    """See `Store.size_at`."""
    branch = branch_of(db, session_id)
    last, end = exchange_count - 1, _END
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
) -> tuple[list[Session], int]:
    """See `Store.list`."""
    kept = json.dumps(list(active_or_in_turn))
    if labels:
        # One label leads by its index, the others are looked at in the rows that it finds.
        key, value = next(iter(labels.items()))
        rows = db.execute(
            "SELECT sessions.* FROM labels CROSS JOIN sessions ON sessions.pk = labels.session"
            " WHERE labels.key = ? AND labels.value = ? AND labels.session > ?"
            " AND (sessions.expire_time > ? OR sessions.id IN (SELECT value FROM json_each(?)))"
            " ORDER BY labels.session",
            (key, value, after, now, kept),
        )
    else:
        rows = db.execute(
            # The plus keeps the planner on the primary key, whose order the page has.
            "SELECT * FROM sessions WHERE pk > ?"
            " AND (+expire_time > ? OR +id IN (SELECT value FROM json_each(?))) ORDER BY pk",
            (after, now, kept),
        )
    sessions: list[Session] = []
    for row in rows:
        session = session_of(row)
        if any(session.labels.get(key) != value for key, value in labels.items()):
            continue
        if len(sessions) == limit:
            return sessions, after
        sessions.append(session)
        after = row[0]
    return sessions, 0


def idempotency_record(
    db: sqlite3.Connection, session_id: str, request_id: str
) -> IdempotencyRecord | None:
    """See `Store.idempotency_record`."""
    if not request_id:
        return None
    row = db.execute(
        "SELECT r.request_id, r.digest, r.completion_id, r.last_sequence, r.figures,"
        " m.role, m.content, m.extra FROM sessions s JOIN receipts r ON r.session = s.pk"
        " LEFT JOIN messages m ON m.pk = r.message WHERE s.id = ? AND r.request_id = ?",
        (session_id, request_id),
    ).fetchone()
    return receipt_of(row) if row else None


def completion(db: sqlite3.Connection, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.completion`."""
    row = db.execute(
        "SELECT s.id, r.request_id, r.digest, r.completion_id, r.last_sequence, r.figures,"
        " m.role, m.content, m.extra FROM receipts r JOIN sessions s ON s.pk = r.session"
        " LEFT JOIN messages m ON m.pk = r.message"
        " WHERE r.completion_id = ? AND r.completion_id <> ''",
        (completion_id,),
    ).fetchone()
    return (row[0], receipt_of(row[1:])) if row else None


def created_by(db: sqlite3.Connection, request_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.created_by`."""
    row = db.execute(
        "SELECT s.id, r.request_id, r.digest, r.completion_id, r.last_sequence, r.figures,"
        " NULL, NULL, NULL FROM receipts r JOIN sessions s ON s.pk = r.session"
        " WHERE r.request_id = ? AND r.creates ORDER BY r.session DESC LIMIT 1",
        (request_id,),
    ).fetchone()
    return (row[0], receipt_of(row[1:])) if row else None


def counts(db: sqlite3.Connection, now: float, active_or_in_turn: Collection[str]) -> StoreCounts:
    """See `Store.counts`. Looks at no message."""
    (sessions, messages) = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(message_count), 0) FROM sessions"
    ).fetchone()
    (expired,) = db.execute(
        "SELECT COUNT(*) FROM sessions WHERE expire_time <= ?"
        " AND id NOT IN (SELECT value FROM json_each(?))",
        (now, json.dumps(list(active_or_in_turn))),
    ).fetchone()
    return StoreCounts(sessions, sessions - expired, messages)


def branch_of(db: sqlite3.Connection, session_id: str) -> int | None:
    """The branch of a session's newest messages, which is the session's `pk`."""
    row = db.execute("SELECT pk FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return row[0] if row else None


def fork_of(db: sqlite3.Connection, branch: int) -> tuple[int | None, int, int]:
    """(parent's branch, messages shared with it, exchange of the last of them).

    The parent is None for a branch that begins its own history.
    """
    row = db.execute(
        "SELECT parent, base_position, base_exchange FROM forks WHERE branch = ?", (branch,)
    ).fetchone()
    return (row[0], row[1], row[2]) if row else (None, 0, -1)
