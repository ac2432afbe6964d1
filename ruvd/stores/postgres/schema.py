"""The PostgreSQL schema as numbered migrations; `ruvd_schema` holds how many have run.

It is the SQLite store's schema, with what several daemons need. `owner` is the replica that has the
session's turn, and `epoch` counts the turns that were begun and the writes: the commit of a turn
names the epoch of its beginning, so that a replica which was paused for too long cannot write any
more. `write_id` names the last write, for a caller whose connection broke before the answer.

Texts of clients are bytes in UTF-8, or JSON text with escapes, as a PostgreSQL text cannot hold the
character NUL.
"""

from typing import Any

from psycopg import AsyncConnection

from ruvd.core.errors import StoreUnavailable

# A released migration is never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE replicas (
            id text PRIMARY KEY,
            address text NOT NULL,
            until timestamptz NOT NULL
        )
        """,
        """
        CREATE TABLE sessions (
            pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id text COLLATE "C" NOT NULL UNIQUE,
            create_time double precision NOT NULL,
            last_used_time double precision NOT NULL,
            idle_timeout_seconds double precision NOT NULL,
            expire_time double precision NOT NULL,
            message_count bigint NOT NULL,
            exchange_count bigint NOT NULL,
            size_bytes bigint NOT NULL,
            end_bytes bigint NOT NULL,
            window_start bigint NOT NULL,
            context_tokens bigint,
            context_bytes bigint NOT NULL,
            prompt_tokens bigint NOT NULL,
            cached_tokens bigint,
            completion_tokens bigint NOT NULL,
            keep_exchanges bigint NOT NULL,
            max_exchanges bigint NOT NULL,
            max_tokens bigint,
            rendering text NOT NULL,
            parent_id text NOT NULL,
            model bytea NOT NULL,
            labels text NOT NULL,
            system_prompt bytea NOT NULL,
            label_pairs text[] NOT NULL,
            owner text,
            epoch bigint NOT NULL,
            write_id text NOT NULL
        )
        """,
        "CREATE INDEX sessions_by_use ON sessions (last_used_time, pk)",
        "CREATE INDEX sessions_by_expiry ON sessions (expire_time, pk)",
        "CREATE INDEX sessions_by_label ON sessions USING gin (label_pairs)",
        "CREATE INDEX sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL",
        """
        CREATE TABLE forks (
            branch bigint PRIMARY KEY,
            parent bigint NOT NULL,
            base_position bigint NOT NULL,
            base_exchange bigint NOT NULL
        )
        """,
        "CREATE INDEX forks_by_parent ON forks (parent, base_position)",
        """
        CREATE TABLE messages (
            branch bigint NOT NULL,
            position bigint NOT NULL,
            exchange bigint NOT NULL,
            end_bytes bigint NOT NULL,
            role text NOT NULL,
            content bytea NOT NULL,
            extra text,
            PRIMARY KEY (branch, position)
        )
        """,
        "CREATE INDEX messages_by_exchange ON messages (branch, exchange, position)",
        """
        CREATE TABLE receipts (
            pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            session bigint NOT NULL,
            request_id bytea NOT NULL,
            creates boolean NOT NULL,
            digest bytea NOT NULL,
            completion_id text NOT NULL,
            last_sequence bigint NOT NULL,
            message_position bigint,
            figures text
        )
        """,
        """
        CREATE UNIQUE INDEX receipts_by_session ON receipts (session, request_id)
        WHERE request_id <> ''
        """,
        """
        CREATE INDEX receipts_of_session ON receipts (session)
        """,
        """
        CREATE INDEX receipts_by_completion ON receipts (completion_id)
        WHERE completion_id <> ''
        """,
        "CREATE INDEX receipts_by_creation ON receipts (request_id, session) WHERE creates",
        "CREATE TABLE garbage (branch bigint PRIMARY KEY, kept bigint)",
    ),
    # A `tenant` is the prefix of its ids, see `core.tenants`: what follows the last slash is cut.
    (
        """
        ALTER TABLE sessions
        ADD COLUMN tenant text COLLATE "C" NOT NULL
            GENERATED ALWAYS AS (rtrim(id, replace(id, '/', ''))) STORED,
        ADD COLUMN stored_bytes bigint NOT NULL
            GENERATED ALWAYS AS (size_bytes + octet_length(system_prompt)) STORED
        """,
        "DROP INDEX sessions_by_use",
        """
        CREATE INDEX sessions_by_use ON sessions (tenant, last_used_time, pk)
        INCLUDE (stored_bytes)
        """,
        """
        CREATE TABLE tombstones (
            pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id text COLLATE "C" NOT NULL UNIQUE,
            tenant text COLLATE "C" NOT NULL,
            reason text NOT NULL,
            time double precision NOT NULL
        )
        """,
    ),
    # Not logged, so that a claim costs no write to the disk; see `claims`.
    ("CREATE UNLOGGED TABLE claims (session_id text PRIMARY KEY, owner text NOT NULL)",),
    ("ALTER TABLE sessions ADD COLUMN last_owner text",),
    # The fields of compaction, see `compaction_fields`; NULL for a session without any.
    (
        "DROP INDEX sessions_by_use",
        """
        ALTER TABLE sessions
        ADD COLUMN compaction text,
        ADD COLUMN summary bytea NOT NULL DEFAULT ''::bytea,
        DROP COLUMN stored_bytes
        """,
        """
        ALTER TABLE sessions ADD COLUMN stored_bytes bigint NOT NULL GENERATED ALWAYS AS
            (size_bytes + octet_length(system_prompt) + octet_length(summary)) STORED
        """,
        """
        CREATE INDEX sessions_by_use ON sessions (tenant, last_used_time, pk)
        INCLUDE (stored_bytes)
        """,
    ),
    # Written with the lease, so that it goes with it; see `usage`.
    ("ALTER TABLE replicas ADD COLUMN tenant_usage text NOT NULL DEFAULT ''",),
)
# Any number that no other program uses for an advisory lock in the same database.
_LOCK = 0x72757664


async def migrate(
    db: AsyncConnection[Any], migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Brings the database to the newest schema, in one transaction. Daemons wait for each other.

    Raises StoreUnavailable for a schema of a newer ruvd, and for a database that cannot hold every
    text.
    """
    (encoding,) = await _row(db, "SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreUnavailable(
            f"the database has the encoding {encoding}: create one with the encoding UTF8"
        )
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        await db.execute("CREATE TABLE IF NOT EXISTS ruvd_schema (version integer NOT NULL)")
        rows = await (await db.execute("SELECT version FROM ruvd_schema")).fetchall()
        version = rows[0][0] if rows else 0
        if version > len(migrations):
            raise StoreUnavailable(
                f"the database was written by a newer ruvd (schema {version}, this one knows"
                f" {len(migrations)}): install that version, or use another database"
            )
        for statements in migrations[version:]:
            for statement in statements:
                await db.execute(statement.encode())
        if not rows:
            await db.execute("INSERT INTO ruvd_schema VALUES (%s)", (len(migrations),))
        elif version < len(migrations):
            await db.execute("UPDATE ruvd_schema SET version = %s", (len(migrations),))


async def _row(db: AsyncConnection[Any], query: str) -> tuple[Any, ...]:
    row = await (await db.execute(query.encode())).fetchone()
    if row is None:
        raise StoreUnavailable(f"the database does not answer {query!r}")
    return tuple(row)
