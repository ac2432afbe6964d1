"""The writes that delete sessions from the SQLite database: their rows and labels, at O(log n).

Their messages and idempotency records stay in the file until `purge` deletes them. Deleted values
of existing sessions are announced to it as the branch `VALUES`, which is no session's.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice

from ruvd.core.ports.store import Gone
from ruvd.core.tenants import prefix
from ruvd.stores.sqlite.rows import to_labels
from ruvd.stores.sqlite.sealing import forget_key, opener_of, possible_label_rows
from ruvd.stores.sqlite.session_cache import SessionCache
from ruvd.stores.sqlite.tombstones import Tombstones

# The limit that `Store.expire` promises.
_MAX_EXPIRED = 1_000

VALUES = 0

_BY_EXPIRY = "SELECT id FROM sessions WHERE expire_time <= ? ORDER BY expire_time, pk"
_BY_USE = "SELECT id FROM sessions WHERE tenant = ? ORDER BY last_used_time, pk"


def end(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    tombstones: Tombstones,
    session_id: str,
    gone: Gone | None,
    now: float,
) -> bool:
    """See `Store.end`."""
    found = remove(db, session_cache, session_id)
    if gone is None:
        if not found:
            tombstones.discard(db, session_id)
    elif found:
        tombstones.put(db, [session_id], gone, now)
    return found


def remove(db: sqlite3.Connection, session_cache: SessionCache, session_id: str) -> bool:
    """Deletes a session without a tombstone; returns False for an unknown id."""
    row = db.execute("SELECT pk, labels FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        return False
    session_cache.drop(session_id)
    branch, labels = row[0], to_labels(row[0], session_id, row[1], opener_of(db))
    db.execute("DELETE FROM sessions WHERE pk = ?", (branch,))
    db.execute("INSERT INTO garbage VALUES (?)", (branch,))
    remove_labels(db, branch, labels)
    forget_key(db, branch)
    return True


def expire(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    tombstones: Tombstones,
    now: float,
    protected: Collection[str],
) -> list[str]:
    """See `Store.expire`."""
    tombstones.prune(db, now)
    expired = find_expired(db, now, _MAX_EXPIRED, lambda each: each not in protected)
    for session_id in expired:
        remove(db, session_cache, session_id)
    tombstones.put(db, expired, Gone.EXPIRED, now)
    return expired


def find_expired(
    db: sqlite3.Connection, now: float, count: int, accept: Callable[[str], bool]
) -> list[str]:
    """Returns the first accepted sessions that have expired, in the order of their expiry."""
    return _first(db.execute(_BY_EXPIRY, (now,)), count, accept)


def find_least_recently_used(
    db: sqlite3.Connection, tenant: str, count: int, accept: Callable[[str], bool]
) -> list[str]:
    """Returns the accepted sessions of a tenant whose last use is the longest ago."""
    return _first(db.execute(_BY_USE, (prefix(tenant),)), count, accept)


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


def _first(rows: Iterable[tuple[str]], count: int, accept: Callable[[str], bool]) -> list[str]:
    return list(islice((each for (each,) in rows if accept(each)), count))
