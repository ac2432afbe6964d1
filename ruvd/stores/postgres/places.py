"""Room for new sessions in PostgreSQL, and tombstones of those that give it.

What a tenant has is added up from an index when it is needed. A row with its sums would make all
turns of the tenant wait for each other's commits.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice

from ruvd.core import tenants
from ruvd.core.errors import SessionExists
from ruvd.core.ports import room
from ruvd.core.ports.store import (
    Commit,
    Gone,
    RemovedSession,
    StoreUsage,
    TombstoneLimits,
    TurnSnapshot,
)
from ruvd.stores.postgres import removals
from ruvd.stores.postgres.reads import Connection, every, one
from ruvd.stores.postgres.removals import EXPIRED, LEAST_USED, MAY_TAKE, REMOVE, REMOVE_EXPIRED

_OWN = (
    "SELECT count(*), coalesce(sum(stored_bytes), 0)::bigint FROM sessions"
    " WHERE tenant = %(tenant)s"
)
_BURY = (
    "INSERT INTO tombstones (id, tenant, reason, time)"
    " SELECT id, rtrim(id, replace(id, '/', '')), %(reason)s, %(now)s"
    " FROM unnest(%(ids)s::text[]) AS gone (id)"
    " ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, time = excluded.time"
)
_SURPLUS = (
    "DELETE FROM tombstones WHERE pk IN (SELECT pk FROM (SELECT pk,"
    " row_number() OVER (PARTITION BY tenant ORDER BY pk DESC) AS own,"
    " row_number() OVER (ORDER BY pk DESC) AS place FROM tombstones) numbered"
    " WHERE own > %(own)s OR place > %(all)s)"
)


async def lock(db: Connection, tenant: str) -> None:
    """Waits until no other replica adds to the tenant's room, until the transaction ends."""
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (tenant,))


async def usage(db: Connection, tenant: str, count: int) -> StoreUsage:
    """See `Store.usage`; `count` is that of all sessions."""
    row = await one(db, _OWN, {"tenant": tenants.prefix(tenant)})
    assert row is not None  # noqa: S101  # an aggregate has a row
    return StoreUsage(max(count, row[0]), row[0], row[1])


async def gone(
    db: Connection, tombstones: TombstoneLimits, session_id: str, now: float
) -> Gone | None:
    """See `Store.gone`."""
    if tombstones.retention_seconds <= 0:
        return None
    row = await one(db, "SELECT expire_time FROM sessions WHERE id = %s", (session_id,))
    if row is not None:
        return Gone.EXPIRED if row[0] <= now else None
    row = await one(
        db,
        "SELECT reason FROM tombstones WHERE id = %s AND time > %s",
        (session_id, now - tombstones.retention_seconds),
    )
    return Gone(row[0]) if row else None


async def snapshot_of_none(
    db: Connection,
    tombstones: TombstoneLimits,
    session_id: str,
    now: float,
    count: int,
    *,
    has_expired: bool,
) -> TurnSnapshot:
    """Returns what a turn begins with in a session that is unknown or has expired."""
    return TurnSnapshot(
        has_expired=has_expired,
        gone=await gone(db, tombstones, session_id, now),
        usage=await usage(db, tenants.tenant_of(session_id), count),
    )


async def end(
    db: Connection,
    me: str,
    tombstones: TombstoneLimits,
    session_id: str,
    why: Gone | None,
    now: float,
) -> bool:
    """See `Store.end`. Whoever had the session's turn cannot commit it any more."""
    remove = REMOVE_EXPIRED if why is Gone.EXPIRED else REMOVE
    async with db.transaction():
        existed = await one(db, remove, {"ids": [session_id], "me": me, "now": now}) is not None
        if why is None:
            await db.execute("DELETE FROM tombstones WHERE id = %s", (session_id,))
        elif existed:
            await bury(db, tombstones, [session_id], why, now)
        return existed


async def expire(
    db: Connection, tombstones: TombstoneLimits, now: float, protected: Collection[str]
) -> list[str]:
    """See `Store.expire`."""
    async with db.transaction():
        expired = await removals.expire(db, now, protected)
        await prune(db, tombstones, now)
        await bury(db, tombstones, expired, Gone.EXPIRED, now)
        return expired


async def make_room(
    db: Connection, me: str, tombstones: TombstoneLimits, change: Commit, count: int
) -> list[RemovedSession]:
    """Deletes what has to go for a new session. Raises what `Store.commit` does, first."""
    session_id = change.session.id
    tenant = tenants.tenant_of(session_id)
    if change.max_own_sessions is not None or change.max_own_bytes is not None:
        await lock(db, tenant)
    old = await one(
        db,
        f"SELECT expire_time, stored_bytes, {MAY_TAKE} FROM sessions WHERE id = %(id)s FOR UPDATE",
        {"id": session_id, "me": me},
    )
    if old is not None and (old[0] > change.now or not old[2]):
        raise SessionExists(f"there is a session {tenants.own(session_id)!r} already")
    found = await usage(db, tenant, count) if _needs_usage(change, count) else StoreUsage(count)
    if old is not None:
        found = room.without(found, old[1])
    room.check_bytes(change, found)
    victims = await _victims(db, change, found)
    removed = [RemovedSession(session_id, expired=True)] if old is not None else []
    removed += [RemovedSession(each, expired=why is Gone.EXPIRED) for each, why in victims]
    if removed:
        await db.execute(REMOVE, {"ids": [each.session_id for each in removed]})
    for why in Gone:
        ids = [each for each, reason in victims if reason is why]
        await bury(db, tombstones, ids, why, change.now)
    await db.execute("DELETE FROM tombstones WHERE id = %s", (session_id,))
    return removed


async def bury(
    db: Connection,
    tombstones: TombstoneLimits,
    session_ids: Sequence[str],
    reason: Gone,
    now: float,
) -> None:
    """Makes tombstones of sessions. Those beyond the limits are deleted by `prune`."""
    if session_ids and tombstones.retention_seconds > 0:
        values = {"ids": list(session_ids), "reason": reason.value, "now": now}
        await db.execute(_BURY, values)


async def prune(db: Connection, tombstones: TombstoneLimits, now: float) -> None:
    """Deletes the tombstones that no longer count, and the oldest ones beyond the limits."""
    horizon = now - tombstones.retention_seconds
    await db.execute("DELETE FROM tombstones WHERE time <= %s", (horizon,))
    values = {"own": tombstones.max_of_tenant, "all": tombstones.max_in_all}
    await db.execute(_SURPLUS, values)


async def _victims(db: Connection, change: Commit, found: StoreUsage) -> Sequence[tuple[str, Gone]]:
    """Returns the sessions that have to go, which are locked until the transaction ends."""
    stale, own = room.wanted(change, found)
    kept = [change.session.id, *change.protected]
    values = {"now": change.now, "kept": kept}
    expired = (
        [row[0] for row in await every(db, EXPIRED, values | {"count": stale})] if stale else []
    )
    values |= {
        "kept": [*kept, *expired],
        "count": own,
        "tenant": tenants.prefix(tenants.tenant_of(change.session.id)),
    }
    used = [row[0] for row in await every(db, LEAST_USED, values)] if own else []

    def first(ids: Iterable[str]) -> Callable[[int, Callable[[str], bool]], Iterable[str]]:
        return lambda count, accept: list(islice(filter(accept, ids), count))

    return room.victims(change, found, expired=first(expired), least_recently_used=first(used))


def _needs_usage(change: Commit, count: int) -> bool:
    is_full = change.max_sessions is not None and count >= change.max_sessions
    is_limited = change.max_own_sessions is not None or change.max_own_bytes is not None
    return is_full or is_limited
