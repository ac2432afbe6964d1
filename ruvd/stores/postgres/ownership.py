"""Sessions that a replica has without writing them: used, given back, or in use elsewhere."""

from collections.abc import Collection

from ruvd.core.model import TOUCH_SHARE
from ruvd.stores.postgres.reads import Connection, one
from ruvd.stores.postgres.removals import MAY_TAKE


async def is_in_use_elsewhere(db: Connection, me: str, session_id: str) -> bool | None:
    """Whether another living replica has the session; None if there is no such session."""
    query = f"SELECT NOT {MAY_TAKE} FROM sessions WHERE id = %(id)s"
    row = await one(db, query, {"me": me, "id": session_id})
    return None if row is None else bool(row[0])


async def touch(
    db: Connection, me: str, session_id: str, now: float, keeper: str | None = None
) -> bool:
    """See `Store.touch`. If this replica has the session, it belongs to the `keeper` afterwards."""
    row = await one(
        db,
        "UPDATE sessions SET last_used_time = greatest(last_used_time, %(now)s),"
        " expire_time = greatest(expire_time, %(now)s + idle_timeout_seconds),"
        " owner = CASE WHEN owner = %(me)s THEN %(keeper)s ELSE owner END"
        " WHERE id = %(id)s RETURNING pk",
        {"id": session_id, "now": now, "me": me, "keeper": keeper},
    )
    return row is not None


async def touch_running(db: Connection, me: str, now: float) -> None:
    """Records that this replica's turns use their sessions, for those where that is due."""
    await db.execute(
        "UPDATE sessions SET last_used_time = %(now)s,"
        " expire_time = %(now)s + idle_timeout_seconds WHERE owner = %(me)s"
        " AND %(now)s - last_used_time >= idle_timeout_seconds * %(share)s",
        {"me": me, "now": now, "share": TOUCH_SHARE},
    )


async def give_back(db: Connection, me: str, session_ids: Collection[str]) -> None:
    """Gives sessions back that this replica may still have without a turn."""
    await db.execute(
        "UPDATE sessions SET owner = NULL WHERE owner = %s AND id = ANY(%s)",
        (me, list(session_ids)),
    )
