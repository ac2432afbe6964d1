"""The SQLite schema as numbered migrations; `PRAGMA user_version` counts those that have run.

Forking copies nothing. Messages belong to a branch, which is a session's `pk` and is never reused.
A row of `forks` says that a branch begins with the first `base_position` messages of its parent.
Deleting a session puts its branch into `garbage`, which is purged later, so that it costs O(log n).
`end_bytes` is the size of the history up to the end of a message, so that a size is one look-up.
`receipts` are the idempotency records; they refer to the answer's message and do not repeat it.

`tenants` has the sums of each tenant with sessions or tombstones, and `totals` those of all.
Triggers keep both, within the statement that changes a row, so that a turn needs no further one.
"""

import sqlite3

from ruvd.core.errors import StoreUnavailable

# A released migration is never edited.
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
    # The fields of a message besides its text, see `rows`. The statement rewrites no row.
    ("ALTER TABLE messages ADD COLUMN extra TEXT",),
    # The reading of the clock, one row.
    (
        """
        CREATE TABLE clock (
            pk INTEGER PRIMARY KEY CHECK (pk = 1),
            boot_id TEXT NOT NULL,
            offset_seconds REAL NOT NULL,
            now REAL NOT NULL,
            wall_shift REAL NOT NULL
        )
        """,
    ),
    # The checksums of rows, see `checksums`. The statements rewrite no row: older ones have none.
    tuple(
        f"ALTER TABLE {table} ADD COLUMN checksum INTEGER"
        for table in ("sessions", "messages", "receipts")
    ),
    # Sealed stores, see `sealing` and `data_keys`. Plain stores have no rows in them.
    (
        """
        CREATE TABLE sealing (
            pk INTEGER PRIMARY KEY CHECK (pk = 1),
            state TEXT NOT NULL,
            key_id TEXT NOT NULL,
            sealed BLOB NOT NULL,
            part TEXT NOT NULL,
            position INTEGER NOT NULL
        )
        """,
        """
        CREATE TABLE data_keys (
            branch INTEGER PRIMARY KEY,
            key_id TEXT NOT NULL,
            sealed BLOB NOT NULL
        )
        """,
        "CREATE INDEX data_keys_by_key ON data_keys (key_id)",
    ),
    # The sums of tenants, and tombstones. A `tenant` is the prefix of its ids, see `core.tenants`.
    # Sessions are evicted in the order of use of their tenant.
    (
        "ALTER TABLE sessions ADD COLUMN tenant TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sessions ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0",
        # Cuts what follows the last slash of an id.
        """
        UPDATE sessions SET tenant = rtrim(id, replace(id, '/', '')),
            stored_bytes = size_bytes + length(CAST(system_prompt AS BLOB))
        """,
        "DROP INDEX sessions_by_use",
        "CREATE INDEX sessions_by_use ON sessions (tenant, last_used_time)",
        """
        CREATE TABLE tombstones (
            pk INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            reason TEXT NOT NULL,
            time REAL NOT NULL
        )
        """,
        "CREATE INDEX tombstones_by_tenant ON tombstones (tenant)",
        "ALTER TABLE totals ADD COLUMN tombstones INTEGER NOT NULL DEFAULT 0",
        """
        CREATE TABLE tenants (
            tenant TEXT PRIMARY KEY,
            sessions INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL DEFAULT 0,
            tombstones INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID
        """,
        """
        INSERT INTO tenants SELECT tenant, COUNT(*), SUM(stored_bytes), 0
        FROM sessions GROUP BY tenant
        """,
        """
        CREATE TRIGGER session_added AFTER INSERT ON sessions BEGIN
            UPDATE totals SET sessions = sessions + 1;
            INSERT INTO tenants (tenant, sessions, bytes)
            VALUES (NEW.tenant, 1, NEW.stored_bytes) ON CONFLICT (tenant)
            DO UPDATE SET sessions = sessions + 1, bytes = bytes + excluded.bytes;
        END
        """,
        """
        CREATE TRIGGER session_changed AFTER UPDATE OF stored_bytes ON sessions
        WHEN NEW.stored_bytes <> OLD.stored_bytes BEGIN
            UPDATE tenants SET bytes = bytes + NEW.stored_bytes - OLD.stored_bytes
            WHERE tenant = NEW.tenant;
        END
        """,
        """
        CREATE TRIGGER session_removed AFTER DELETE ON sessions BEGIN
            UPDATE totals SET sessions = sessions - 1;
            UPDATE tenants SET sessions = sessions - 1, bytes = bytes - OLD.stored_bytes
            WHERE tenant = OLD.tenant;
            DELETE FROM tenants WHERE tenant = OLD.tenant AND sessions = 0 AND tombstones = 0;
        END
        """,
        """
        CREATE TRIGGER tombstone_added AFTER INSERT ON tombstones BEGIN
            UPDATE totals SET tombstones = tombstones + 1;
            INSERT INTO tenants (tenant, tombstones) VALUES (NEW.tenant, 1) ON CONFLICT (tenant)
            DO UPDATE SET tombstones = tombstones + 1;
        END
        """,
        """
        CREATE TRIGGER tombstone_removed AFTER DELETE ON tombstones BEGIN
            UPDATE totals SET tombstones = tombstones - 1;
            UPDATE tenants SET tombstones = tombstones - 1 WHERE tenant = OLD.tenant;
            DELETE FROM tenants WHERE tenant = OLD.tenant AND sessions = 0 AND tombstones = 0;
        END
        """,
    ),
    # The fields of compaction, see `compaction_fields`; NULL for a session without any.
    ("ALTER TABLE sessions ADD COLUMN compaction",),
)

# The first schema whose stores may be sealed.
SEALED_SCHEMA = 5


def schema_version(db: sqlite3.Connection, path: str) -> int:
    """Returns how many migrations the database has had, 0 if it is empty. Changes nothing.

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


def migrate(
    db: sqlite3.Connection,
    version: int,
    migrations: tuple[tuple[str, ...], ...] = MIGRATIONS,
) -> None:
    """Brings a database of this version to the newest, with one transaction for each migration.

    SQLite stores the statements as they are. Without their indentation a new schema fits the first
    page, which every connection has in memory.
    """
    for number, statements in enumerate(migrations[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            db.execute(" ".join(statement.split()))
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
