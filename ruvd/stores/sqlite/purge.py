"""Purges what deleted sessions left in the SQLite database, in steps of a few milliseconds.

A deleted branch keeps what its forks still share, and is looked at again when one of them goes.
Freed pages are given back to the file system, but for a few that the next sessions will need.
"""

from __future__ import annotations

import sqlite3

# A step deletes at most this many rows or, past its first message, bytes of content.
_ROWS = 200
_BYTES = 4 * 1024 * 1024
# Pages given back in a step, and free ones that stay in the file (of 4 KiB each).
_PAGES = 256
_SPARE_PAGES = 256


def purge_step(db: sqlite3.Connection) -> bool:
    """Do a bounded piece of work, in transactions of its own; False when nothing is left."""
    row = db.execute("SELECT branch FROM garbage LIMIT 1").fetchone()
    if row is not None:
        db.execute("BEGIN IMMEDIATE")
        if not _purge_receipts(db, row[0]) and not _purge_messages(db, row[0]):
            _forget(db, row[0])
        db.execute("COMMIT")
        return True
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    if free <= _SPARE_PAGES:
        return False
    # The pragma works as its rows are fetched.
    db.execute(f"PRAGMA incremental_vacuum({min(_PAGES, free - _SPARE_PAGES)})").fetchall()
    if free - _PAGES <= _SPARE_PAGES:
        # The file itself shrinks when the log is copied back into it.
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return True


def _purge_receipts(db: sqlite3.Connection, branch: int) -> int:
    return db.execute(
        "DELETE FROM receipts WHERE pk IN (SELECT pk FROM receipts WHERE session = ? LIMIT ?)",
        (branch, _ROWS),
    ).rowcount


def _purge_messages(db: sqlite3.Connection, branch: int) -> int:
    (shared, last_exchange) = db.execute(
        "SELECT COALESCE(MAX(base_position), 0), COALESCE(MAX(base_exchange), -1)"
        " FROM forks WHERE parent = ?",
        (branch,),
    ).fetchone()
    # Exchanges never sink along a history, so that the index finds the end of the shared part.
    rows = db.execute(
        "SELECT pk, end_bytes FROM messages WHERE branch = ? AND exchange >= ? AND position >= ?"
        " ORDER BY exchange DESC, position DESC LIMIT ?",
        (branch, last_exchange, shared, _ROWS),
    ).fetchall()
    doomed = [(pk,) for pk, end_bytes in rows if rows[0][1] - end_bytes <= _BYTES]
    db.executemany("DELETE FROM messages WHERE pk = ?", doomed)
    return len(doomed)


def _forget(db: sqlite3.Connection, branch: int) -> None:
    """Take the branch off the list and, if nothing forks from it, out of the database."""
    db.execute("DELETE FROM garbage WHERE branch = ?", (branch,))
    if db.execute("SELECT 1 FROM forks WHERE parent = ? LIMIT 1", (branch,)).fetchone():
        return
    row = db.execute("SELECT parent FROM forks WHERE branch = ?", (branch,)).fetchone()
    if row is None:
        return
    db.execute("DELETE FROM forks WHERE branch = ?", (branch,))
    if not db.execute("SELECT 1 FROM sessions WHERE pk = ?", row).fetchone():
        db.execute("INSERT OR IGNORE INTO garbage VALUES (?)", row)
