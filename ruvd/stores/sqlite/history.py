"""The reads of a session's history in the SQLite store.

A history is read branch by branch from its end towards its beginning. Reading stops at the branch
that holds the first exchange that is needed, so that the history before it costs nothing. A cursor
that is not read to its end is closed, because it holds its view of the database while it is open,
and an error holds it with its traceback.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby

from ruvd.core.model import Exchange, Message
from ruvd.core.ports.store import HistoryPart
from ruvd.stores.sqlite.checksums import Row
from ruvd.stores.sqlite.rows import damaged, to_message, to_session
from ruvd.stores.sqlite.sealing import opener_of

_UNBOUNDED = 2**62


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
