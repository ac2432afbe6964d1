"""The SQLite schema, as numbered migrations: `PRAGMA user_version` is how many have run.

A fork copies nothing: messages belong to a branch (a session's `pk`, never reused), and a row in
`forks` says that the branch begins with the first `base_position` messages of its parent's. A
deleted session leaves its branch in `garbage`, to be purged later, so that ending costs O(log n).
`end_bytes` adds up from the start of the history, which makes a size a look-up. A receipt points
at its answer's message instead of repeating it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ruvd.core.errors import StoreUnavailable

# What has been released is never edited, only added to.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE sessions (
            pk INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            create_time REAL NOT NULL,
            last_used_time REAL NOT NULL,
            idle_timeout_seconds REAL NOT NULL,
            expire_time REAL NOT NULL,
            message_count INTEGER NOT NULL,
            exchange_count INTEGER NOT NULL,
            size_bytes INTEGER NOT NULL,
            end_bytes INTEGER NOT NULL,
            window_start INTEGER NOT NULL,
            context_tokens INTEGER,
            context_bytes INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            cached_tokens INTEGER,
            completion_tokens INTEGER NOT NULL,
            keep_exchanges INTEGER NOT NULL,
            max_exchanges INTEGER NOT NULL,
            max_tokens INTEGER,
            rendering TEXT NOT NULL,
            parent_id TEXT NOT NULL,
            model TEXT NOT NULL,
            labels TEXT NOT NULL,
            system_prompt TEXT NOT NULL
        )
        """,
        "CREATE INDEX sessions_by_use ON sessions (last_used_time)",
        "CREATE INDEX sessions_by_expiry ON sessions (expire_time)",
        # COUNT(*) reads the whole table; eviction must not.
        "CREATE TABLE totals (sessions INTEGER NOT NULL)",
        "INSERT INTO totals VALUES (0)",
        """
        CREATE TABLE labels (
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            session INTEGER NOT NULL,
            PRIMARY KEY (key, value, session)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE forks (
            branch INTEGER PRIMARY KEY,
            parent INTEGER NOT NULL,
            base_position INTEGER NOT NULL,
            base_exchange INTEGER NOT NULL
        )
        """,
        "CREATE INDEX forks_by_parent ON forks (parent, base_position, base_exchange)",
        """
        CREATE TABLE messages (
            pk INTEGER PRIMARY KEY,
            branch INTEGER NOT NULL,
            exchange INTEGER NOT NULL,
            position INTEGER NOT NULL,
            end_bytes INTEGER NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL
        )
        """,
        """
        CREATE UNIQUE INDEX messages_in_order
        ON messages (branch, exchange, position, end_bytes)
        """,
        """
        CREATE TABLE receipts (
            pk INTEGER PRIMARY KEY,
            session INTEGER NOT NULL,
            request_id TEXT NOT NULL,
            creates INTEGER NOT NULL,
            digest BLOB NOT NULL,
            completion_id TEXT NOT NULL,
            last_sequence INTEGER NOT NULL,
            message INTEGER,
            figures TEXT
        )
        """,
        "CREATE INDEX receipts_by_session ON receipts (session, request_id)",
        """
        CREATE INDEX receipts_by_completion ON receipts (completion_id)
        WHERE completion_id <> ''
        """,
        "CREATE INDEX receipts_by_creation ON receipts (request_id) WHERE creates",
        "CREATE TABLE garbage (branch INTEGER PRIMARY KEY)",
    ),
    # What a message has besides its text, see `rows`. It looks at no row, however many there are.
    ("ALTER TABLE messages ADD COLUMN extra TEXT",),
)


def version_of(db: sqlite3.Connection, path: str) -> int:
    """How many migrations the database has had; 0 for an empty one. Changes nothing.

    Raises StoreUnavailable for a database of a newer ruvd or of another program.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"{path} was written by a newer ruvd (schema {version}, this one knows"
            f" {len(MIGRATIONS)}): install that version, or use another file"
        )
    if version == 0 and db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise StoreUnavailable(f"{path} is a database of another program: use another file")
    return int(version)


def is_newer(path: Path) -> bool:
    """Whether a newer ruvd wrote the file. Changes nothing; False where it cannot be read."""
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error:
        return False
    return int(version) > len(MIGRATIONS)


def migrate(
    db: sqlite3.Connection,
    version: int,
    migrations: tuple[tuple[str, ...], ...] = MIGRATIONS,
) -> None:
    """Bring a database of that version to the newest schema, a transaction a step."""
    for number, statements in enumerate(migrations[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
