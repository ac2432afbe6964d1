"""The reads of the PostgreSQL store: each function implements one `Store` method on a connection.

A history is that of a chain of branches: a branch begins with the first messages of its parent. One
statement reads from all of them, so that the answer is of one instant.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from psycopg import AsyncConnection

from ruvd.core import tenants
from ruvd.core.errors import DataCorrupted
from ruvd.core.model import Exchange, IdempotencyRecord, Message, Session
from ruvd.core.ports.store import MAX_PAGE_BYTES, HistoryPart, StoreCounts, TenantCounts
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores.postgres.rows import (
    LISTED_FIELDS,
    RECORD_FIELDS,
    SESSION_FIELDS,
    Row,
    label_pairs,
    to_message,
    to_record,
    to_session,
    to_turn,
)

Connection: TypeAlias = AsyncConnection[Any]

# The branches of a session, each with the position at which its part of the history ends.
CHAIN = """
WITH RECURSIVE chain (branch, until, beginning) AS (
    SELECT s.pk, s.message_count, coalesce(f.base_position, 0)
    FROM sessions s LEFT JOIN forks f ON f.branch = s.pk WHERE s.id = %(id)s
    UNION ALL
    SELECT f.parent, least(chain.until, f.base_position), coalesce(g.base_position, 0)
    FROM chain JOIN forks f ON f.branch = chain.branch LEFT JOIN forks g ON g.branch = f.parent
)
"""
_RECORDS = f"""
SELECT s.id, {RECORD_FIELDS} FROM receipts r JOIN sessions s ON s.pk = r.session
LEFT JOIN messages m ON m.branch = r.session AND m.position = r.message_position WHERE
"""
_EXCHANGES = (
    CHAIN + "SELECT m.exchange, m.position, m.role, m.content, m.extra FROM chain"
    " JOIN messages m ON m.branch = chain.branch"
    " WHERE m.position < chain.until AND m.exchange >= {first} ORDER BY m.position"
)
# The exchanges of a session's window.
WINDOW = _EXCHANGES.format(first="(SELECT window_start FROM sessions WHERE id = %(id)s)")
# Rows that are fetched at once where it is not known how many are needed.
_PAGE_ROWS = 100


async def get(db: Connection, session_id: str) -> Session | None:
    """See `Store.get`."""
    row = await one(db, f"SELECT {SESSION_FIELDS} FROM sessions WHERE id = %s", (session_id,))
    return to_session(row) if row else None


async def exchanges(db: Connection, session_id: str, first: int) -> list[Exchange]:
    """See `Store.exchanges`."""
    rows = await every(db, _EXCHANGES.format(first="%(first)s"), {"id": session_id, "first": first})
    return to_exchanges(session_id, first, rows)


def to_exchanges(session_id: str, first: int, rows: Sequence[Row]) -> list[Exchange]:
    """Returns the exchanges from `first` on, which are in these rows. Raises DataCorrupted."""
    positions = [row[1] for row in rows]
    if rows and positions != list(range(positions[0], positions[0] + len(rows))):
        raise damaged(session_id, f"messages from its exchange {first} on are missing")
    return [
        tuple(to_message(row[2:]) for row in group)
        for _, group in groupby(rows, key=lambda row: row[0])
    ]


async def messages(
    db: Connection, session_id: str, first: int, max_messages: int, max_bytes: int
) -> HistoryPart | None:
    """See `Store.messages`."""
    row = await one(db, f"SELECT {SESSION_FIELDS} FROM sessions WHERE id = %s", (session_id,))
    if row is None:
        return None
    session = to_session(row)
    found: list[Message] = []
    # `end_bytes` tells the sizes of the messages, so that no more are read than are returned.
    rows = await every(
        db,
        CHAIN + ", part AS (SELECT m.position, m.end_bytes, m.branch FROM chain"
        " JOIN messages m ON m.branch = chain.branch WHERE m.position < chain.until"
        " AND m.position >= chain.beginning AND m.position >= %(first)s - 1"
        " AND m.position < %(first)s + %(count)s ORDER BY m.position)"
        " SELECT m.position, m.role, m.content, m.extra FROM part"
        " JOIN messages m USING (branch, position) WHERE m.position = %(first)s"
        " OR m.position > %(first)s AND m.end_bytes - coalesce((SELECT before.end_bytes"
        " FROM part before WHERE before.position = %(first)s - 1), 0) <= %(bytes)s"
        " ORDER BY m.position",
        {"id": session_id, "first": first, "count": max_messages, "bytes": max_bytes},
    )
    for position, *values in rows:
        if position >= session.message_count:
            break  # added since the session was read
        if position != first + len(found):
            raise damaged(session_id, f"its message {first + len(found)} is missing")
        found.append(to_message(tuple(values)))
    if not found and first < session.message_count and max_messages > 0:
        raise damaged(session_id, f"its message {first} is missing")
    return HistoryPart(session, found)


async def size_at(db: Connection, session_id: str, exchange_count: int) -> tuple[int, int]:
    """See `Store.size_at`."""
    row = await one(
        db,
        CHAIN + "SELECT last.position + 1, last.end_bytes FROM chain CROSS JOIN LATERAL"
        " (SELECT m.position, m.end_bytes FROM messages m WHERE m.branch = chain.branch"
        " AND m.exchange < %(count)s AND m.position < chain.until"
        " ORDER BY m.exchange DESC, m.position DESC LIMIT 1) last"
        " ORDER BY last.position DESC LIMIT 1",
        {"id": session_id, "count": exchange_count},
    )
    return (row[0], row[1]) if row else (0, 0)


async def page(
    db: Connection,
    after: int,
    limit: int,
    labels: Mapping[str, str],
    now: float,
    active_or_in_turn: Collection[str],
    tenant: str | None,
) -> tuple[list[Session], int]:
    """See `Store.list`."""
    prefix = None if tenant is None else tenants.prefix(tenant)
    sessions: list[Session] = []
    size = 0
    while True:
        rows = await every(
            db,
            f"SELECT pk, {LISTED_FIELDS} FROM sessions WHERE pk > %(after)s"
            " AND (expire_time > %(now)s OR id = ANY(%(in_turn)s))"
            " AND (cardinality(%(pairs)s::text[]) = 0 OR label_pairs @> %(pairs)s::text[])"
            " AND (%(prefix)s::text IS NULL OR (starts_with(id, %(prefix)s)"
            " AND position('/' IN substr(id, length(%(prefix)s) + 1)) = 0))"
            " ORDER BY pk LIMIT %(rows)s",
            {
                "after": after,
                "now": now,
                "in_turn": list(active_or_in_turn),
                "pairs": label_pairs(labels),
                "prefix": prefix,
                "rows": min(_PAGE_ROWS, limit - len(sessions) + 1),
            },
        )
        if not rows:
            return sessions, 0
        for pk, *values in rows:
            if len(sessions) == limit or size >= MAX_PAGE_BYTES:
                return sessions, after
            session = to_session(tuple(values))
            sessions.append(session)
            size += session.labels_bytes
            after = pk


async def idempotency_record(
    db: Connection, session_id: str, request_id: str
) -> IdempotencyRecord | None:
    """See `Store.idempotency_record`."""
    if not request_id:
        return None
    row = await one(
        db, _RECORDS + "s.id = %s AND r.request_id = %s", (session_id, request_id.encode())
    )
    return to_record(row[1:]) if row else None


async def completion(db: Connection, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.completion`."""
    if not completion_id:
        return None
    row = await one(
        db, _RECORDS + "r.completion_id = %s AND r.completion_id <> ''", (completion_id,)
    )
    return (row[0], to_record(row[1:])) if row else None


async def created_by(db: Connection, request_id: str) -> tuple[str, IdempotencyRecord] | None:
    """See `Store.created_by`."""
    row = await one(
        db,
        _RECORDS + "r.request_id = %s AND r.creates ORDER BY r.session DESC LIMIT 1",
        (request_id.encode(),),
    )
    return (row[0], to_record(row[1:])) if row else None


async def turns(db: Connection, session_id: str, first: int, end: int) -> list[StoredTurn]:
    """See `Store.turns`."""
    rows = await every(
        db,
        "SELECT r.message_position, r.completion_id, r.figures FROM sessions s"
        " JOIN receipts r ON r.session = s.pk WHERE s.id = %s AND r.completion_id <> ''"
        " AND r.message_position >= %s AND r.message_position < %s ORDER BY r.message_position",
        (session_id, first, end),
    )
    return [to_turn(row) for row in rows]


async def counts(
    db: Connection, now: float, active_or_in_turn: Collection[str], tenant: str | None
) -> StoreCounts:
    """See `Store.counts`. Reads no messages."""
    row = await one(
        db,
        "SELECT count(*), coalesce(sum(message_count), 0)::bigint,"
        " count(*) FILTER (WHERE expire_time > %(now)s OR id = ANY(%(in_turn)s)) FROM sessions"
        " WHERE %(prefix)s::text IS NULL OR (starts_with(id, %(prefix)s)"
        " AND position('/' IN substr(id, length(%(prefix)s) + 1)) = 0)",
        {
            "now": now,
            "in_turn": list(active_or_in_turn),
            "prefix": None if tenant is None else tenants.prefix(tenant),
        },
    )
    assert row is not None  # noqa: S101  # an aggregate has a row
    return StoreCounts(row[0], row[2], row[1])


async def tenant_counts(
    db: Connection, now: float, after: str, limit: int, active_or_in_turn: Collection[str]
) -> list[TenantCounts]:
    """See `Store.tenants`. Reads no messages."""
    # The tenant is the id up to its last slash: rtrim takes off whatever follows that.
    rows = await every(
        db,
        'SELECT tenant COLLATE "C", count(*), sum(active::integer)::bigint,'
        " sum(message_count)::bigint, sum(size_bytes)::bigint FROM"
        " (SELECT coalesce(nullif(left(rtrim(id, replace(id, '/', '')), -1), ''), %(default)s)"
        " AS tenant, expire_time > %(now)s OR id = ANY(%(in_turn)s) AS active, message_count,"
        ' size_bytes FROM sessions) found WHERE tenant COLLATE "C" > %(after)s'
        " GROUP BY 1 ORDER BY 1 LIMIT %(limit)s",
        {
            "now": now,
            "after": after,
            "limit": limit,
            "in_turn": list(active_or_in_turn),
            "default": tenants.DEFAULT,
        },
    )
    return [TenantCounts(*row) for row in rows]


async def session_count(db: Connection) -> int:
    """Returns the number of stored sessions."""
    row = await one(db, "SELECT count(*) FROM sessions", ())
    return row[0] if row else 0


def damaged(session_id: str, what: str) -> DataCorrupted:
    """Returns the error for damaged data of a session."""
    return DataCorrupted(
        f"stored data of the session {tenants.own(session_id)!r} is damaged: {what}",
        session_id=session_id,
    )


async def one(db: Connection, query: str, values: Sequence[Any] | Mapping[str, Any]) -> Row | None:
    """Returns the first row of a query, or None."""
    return await (await db.execute(query, values)).fetchone()


async def every(db: Connection, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a query."""
    return await (await db.execute(query, values)).fetchall()
