"""The deletion of what deleted sessions left in the SQLite database, in steps of milliseconds.

A deleted branch keeps the messages that its forks share, and is purged again when a fork is
deleted. Free pages are returned to the file system, except for some that new sessions will need.
The branch `removals.VALUES` stands for deleted values of existing sessions: it has no rows, but
what was deleted has to be erased from the log and from unused space, as all that was purged.
"""

import sqlite3

from ruvd.stores.sqlite.sealing import forget_key

# A step deletes at most this many rows, and messages of this many bytes besides the first one.
STEP_ROWS = 200
_STEP_BYTES = 4 * 1024 * 1024
# Pages of 4 KiB that a step returns to the file system, and free ones that stay in the file.
_STEP_PAGES = 256
SPARE_PAGES = 256


def purge_step(db: sqlite3.Connection, rows: int = STEP_ROWS) -> bool:
    """Does one step in a transaction of its own; returns False if there was nothing to do."""
    row = db.execute("SELECT branch FROM garbage LIMIT 1").fetchone()
    if row is None:
        return False
    db.execute("BEGIN IMMEDIATE")
    if not _purge_receipts(db, row[0], rows) and not _purge_messages(db, row[0], rows):
        _remove_branch(db, row[0])
    db.execute("COMMIT")
    return True


def return_free_pages(db: sqlite3.Connection, spare: int = SPARE_PAGES) -> bool:
    """Returns some free pages to the file system, which gets them with the next checkpoint.

    Returns False if there were no more than `spare`.
    """
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    if free <= spare:
        return False
    # The pragma returns one page for each row without columns, of which `execute` fetches one.
    db.executescript(f"PRAGMA incremental_vacuum({min(_STEP_PAGES, free - spare)})")
    return True


def _purge_receipts(db: sqlite3.Connection, branch: int, rows: int) -> int:
    return db.execute(
        "DELETE FROM receipts WHERE pk IN (SELECT pk FROM receipts WHERE session = ? LIMIT ?)",
        (branch, rows),
    ).rowcount


def _purge_messages(db: sqlite3.Connection, branch: int, max_rows: int) -> int:
    (shared, last_exchange) = db.execute(
        "SELECT COALESCE(MAX(base_position), 0), COALESCE(MAX(base_exchange), -1)"
        " FROM forks WHERE parent = ?",
        (branch,),
    ).fetchone()
    # Exchange numbers never decrease along a history: the index finds the end of the shared part.
    rows = db.execute(
        "SELECT pk, end_bytes FROM messages WHERE branch = ? AND exchange >= ? AND position >= ?"
        " ORDER BY exchange DESC, position DESC LIMIT ?",
        (branch, last_exchange, shared, max_rows),
    ).fetchall()
    purged = [(pk,) for pk, end_bytes in rows if rows[0][1] - end_bytes <= _STEP_BYTES]
    db.executemany("DELETE FROM messages WHERE pk = ?", purged)
    return len(purged)


def _remove_branch(db: sqlite3.Connection, branch: int) -> None:
    """Removes the branch from `garbage` and, if it has no forks, from `forks`."""
    db.execute("DELETE FROM garbage WHERE branch = ?", (branch,))
    if db.execute("SELECT 1 FROM forks WHERE parent = ? LIMIT 1", (branch,)).fetchone():
        return
    forget_key(db, branch)
    row = db.execute("SELECT parent FROM forks WHERE branch = ?", (branch,)).fetchone()
    if row is None:
        return
    db.execute("DELETE FROM forks WHERE branch = ?", (branch,))
    if not db.execute("SELECT 1 FROM sessions WHERE pk = ?", row).fetchone():
        db.execute("INSERT OR IGNORE INTO garbage VALUES (?)", row)
