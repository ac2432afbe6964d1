"""The reads of the SQLite store: each function implements one `Store` method on a connection.

The reads of histories are in `ruvd.stores.sqlite.history`. A cursor that is not read to its end is
closed, because it holds its view of the database while it is open, and an error holds it with its
traceback.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

from ruvd.core import tenants
from ruvd.core.errors import DataCorrupted
from ruvd.core.model import IdempotencyRecord, Session
from ruvd.core.ports.store import MAX_PAGE_BYTES, StoreCounts
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores.sqlite.rows import damaged, to_record, to_session, to_turn
from ruvd.stores.sqlite.sealing import opener_of, possible_label_rows

_T = TypeVar("_T")

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
            sessions.append(replace(session, system_prompt="", summary=None))
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


def turns(db: sqlite3.Connection, session_id: str, first: int, end: int) -> list[StoredTurn]:
    """See `Store.turns`."""
    rows = db.execute(
        "SELECT m.position, r.* FROM sessions s JOIN receipts r ON r.session = s.pk"
        " JOIN messages m ON m.pk = r.message WHERE s.id = ? AND r.completion_id <> ''"
        " AND m.position BETWEEN ? AND ? ORDER BY m.position",
        (session_id, first, end - 1),
    ).fetchall()
    opener = opener_of(db)
    return [to_turn(session_id, row[0], row[2:], opener) for row in rows]


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


def _record(
    db: sqlite3.Connection, condition: str, *values: str
) -> tuple[str, IdempotencyRecord] | None:
    row = db.execute(_RECORDS + condition, values).fetchone()
    return (row[0], to_record(row[0], row[2:11], row[11:], opener_of(db))) if row else None
