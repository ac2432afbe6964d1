"""The deletions of the PostgreSQL store: rows of sessions at once, their messages later.

A deleted session's branch is put into `garbage`. The messages that no fork shares are purged by the
sweep. Sessions that living replicas have are neither evicted nor expired.
"""

from collections.abc import Collection
from typing import Any

from ruvd.stores.postgres.reads import Connection, every

# The limit that `Store.expire` promises.
_MAX_EXPIRED = 1_000
# The branches, and the messages of one, that a statement of the purge deletes.
_PURGED_BRANCHES = 100
_PURGED_MESSAGES = 10_000

# The owner of a session is alive: its lease lasts by the database's clock.
_OWNER_LIVES = (
    "EXISTS (SELECT 1 FROM replicas r WHERE r.id = sessions.owner AND r.until > clock_timestamp())"
)
# Nobody's session, or that of a replica that is gone. Also this replica's own are none: a turn may
# begin after it has named the sessions that it protects.
_IDLE = f"(sessions.owner IS NULL OR NOT {_OWNER_LIVES})"
# What this replica may take or delete while nobody else in its process uses it.
MAY_TAKE = f"(sessions.owner IS NULL OR sessions.owner = %(me)s OR NOT {_OWNER_LIVES})"
_REMOVE_WHERE = (
    "WITH gone AS (DELETE FROM sessions WHERE {condition} RETURNING pk, id),"
    " kept AS (INSERT INTO garbage (branch) SELECT pk FROM gone) SELECT id FROM gone"
)
REMOVE = _REMOVE_WHERE.format(condition="id = ANY(%(ids)s)")
REMOVE_EXPIRED = _REMOVE_WHERE.format(
    condition=f"id = ANY(%(ids)s) AND expire_time <= %(now)s AND {MAY_TAKE}"
)
EXPIRED = (
    "SELECT id FROM sessions WHERE expire_time <= %(now)s AND NOT id = ANY(%(kept)s)"
    f" AND {_IDLE} ORDER BY expire_time, pk LIMIT %(count)s FOR UPDATE SKIP LOCKED"
)
LEAST_USED = (
    f"SELECT id FROM sessions WHERE tenant = %(tenant)s AND NOT id = ANY(%(kept)s) AND {_IDLE}"
    " ORDER BY last_used_time, pk LIMIT %(count)s FOR UPDATE SKIP LOCKED"
)


async def expire(db: Connection, now: float, protected: Collection[str]) -> list[str]:
    """Deletes expired sessions as `Store.expire` does, and returns their ids."""
    values = {"now": now, "kept": list(protected), "count": _MAX_EXPIRED}
    return await _remove(db, EXPIRED, values)


async def purge(db: Connection) -> bool:
    """Deletes messages of deleted sessions that no fork shares. False if nothing is left to do."""
    branches = await every(
        db,
        "SELECT branch, needed FROM (SELECT g.branch, g.kept, (SELECT max(base_position)"
        " FROM forks f WHERE f.parent = g.branch) AS needed FROM garbage g) found"
        " WHERE needed IS NULL OR kept IS NULL OR kept > needed LIMIT %(count)s",
        {"count": _PURGED_BRANCHES},
    )
    for branch, needed in branches:
        await _purge_branch(db, branch, needed)
    return bool(branches)


async def _purge_branch(db: Connection, branch: int, needed: int | None) -> None:
    while await every(
        db,
        "DELETE FROM messages WHERE branch = %(branch)s AND position IN (SELECT position"
        " FROM messages WHERE branch = %(branch)s AND position >= %(kept)s"
        " ORDER BY position LIMIT %(count)s) RETURNING position",
        {"branch": branch, "kept": needed or 0, "count": _PURGED_MESSAGES},
    ):
        pass
    async with db.transaction():
        await db.execute("DELETE FROM receipts WHERE session = %s", (branch,))
        if needed is None:
            await db.execute("DELETE FROM forks WHERE branch = %s", (branch,))
            await db.execute("DELETE FROM garbage WHERE branch = %s", (branch,))
        else:
            await db.execute("UPDATE garbage SET kept = %s WHERE branch = %s", (needed, branch))


async def _remove(db: Connection, query: str, values: dict[str, Any]) -> list[str]:
    ids = [row[0] for row in await every(db, query, values)]
    if ids:
        await db.execute(REMOVE, {"ids": ids})
    return ids
