"""The writes that delete sessions from the SQLite database: their rows and labels, at O(log n).

Their messages and idempotency records stay in the file until `purge` deletes them. Deleted values
of existing sessions are announced to it as the branch `VALUES`, which is no session's.
"""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from ruvd.core.errors import SessionExists
from ruvd.core.ports.store import Commit, RemovedSession
from ruvd.core.tenants import own
from ruvd.stores.sqlite.rows import to_labels
from ruvd.stores.sqlite.sealing import forget_key, opener_of, possible_label_rows
from ruvd.stores.sqlite.session_cache import SessionCache

# The limit that `Store.expire` promises.
_MAX_EXPIRED = 1_000

VALUES = 0

_BY_EXPIRY = "SELECT id FROM sessions WHERE expire_time <= ? ORDER BY expire_time, pk"
_BY_USE = "SELECT id FROM sessions ORDER BY last_used_time, pk"


def end(db: sqlite3.Connection, session_cache: SessionCache, session_id: str) -> bool:
    """See `Store.end`."""
    row = db.execute("SELECT pk, labels FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        return False
    session_cache.drop(session_id)
    branch, labels = row[0], to_labels(row[0], session_id, row[1], opener_of(db))
    db.execute("DELETE FROM sessions WHERE pk = ?", (branch,))
    db.execute("UPDATE totals SET sessions = sessions - 1")
    db.execute("INSERT INTO garbage VALUES (?)", (branch,))
    remove_labels(db, branch, labels)
    forget_key(db, branch)
    return True


def expire(
    db: sqlite3.Connection, session_cache: SessionCache, now: float, protected: Collection[str]
) -> list[str]:
    """See `Store.expire`."""
    expired = _first(db.execute(_BY_EXPIRY, (now,)), _MAX_EXPIRED, protected)
    for session_id in expired:
        end(db, session_cache, session_id)
    return expired


def remove_expired(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit
) -> list[RemovedSession]:
    """Deletes a session of the new one's id. Raises SessionExists if it has not expired."""
    session_id = change.session.id
    row = db.execute("SELECT expire_time FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        return []
    if row[0] > change.now:
        raise SessionExists(f"there is a session {own(session_id)!r} already")
    end(db, session_cache, session_id)
    return [RemovedSession(session_id, expired=True)]


def evict(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit
) -> list[RemovedSession]:
    """Deletes the sessions beyond `max_sessions`, as `Store.commit` describes it."""
    if change.max_sessions is None:
        return []
    (count,) = db.execute("SELECT sessions FROM totals").fetchone()
    surplus = count - change.max_sessions
    if surplus <= 0:
        return []
    kept = {change.session.id, *change.protected}
    expired = _first(db.execute(_BY_EXPIRY, (change.now,)), surplus, kept)
    evicted = _first(db.execute(_BY_USE), surplus - len(expired), kept.union(expired))
    for session_id in (*expired, *evicted):
        end(db, session_cache, session_id)
    return [
        *(RemovedSession(session_id, expired=True) for session_id in expired),
        *(RemovedSession(session_id, expired=False) for session_id in evicted),
    ]


def announce_deleted_values(db: sqlite3.Connection) -> None:
    """Records that values of a session that goes on were deleted."""
    db.execute("INSERT OR IGNORE INTO garbage VALUES (?)", (VALUES,))


def remove_labels(db: sqlite3.Connection, branch: int, labels: Mapping[str, str] | None) -> None:
    """Deletes the rows of a session's labels; by reading all of them if they are not known."""
    if labels is None:
        db.execute("DELETE FROM labels WHERE session = ?", (branch,))
        return
    for label in labels.items():
        for key, value in possible_label_rows(db, *label):
            db.execute(
                "DELETE FROM labels WHERE key = ? AND value = ? AND session = ?",
                (key, value, branch),
            )


def _first(rows: Iterable[tuple[str]], count: int, excluded: Collection[str]) -> list[str]:
    return list(islice((each for (each,) in rows if each not in excluded), count))
