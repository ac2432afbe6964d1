"""Room for new sessions in the SQLite database, and what becomes of those that give it."""

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ruvd.core.errors import SessionExists
from ruvd.core.ports import room
from ruvd.core.ports.store import Commit, Gone, RemovedSession, StoreUsage, TurnSnapshot
from ruvd.core.tenants import own, prefix, tenant_of
from ruvd.stores.sqlite.removals import find_expired, find_least_recently_used, remove
from ruvd.stores.sqlite.session_cache import SessionCache
from ruvd.stores.sqlite.tombstones import Tombstones

# One row in any case.
_USAGE = (
    "SELECT totals.sessions, COALESCE(tenants.sessions, 0), COALESCE(tenants.bytes, 0)"
    " FROM totals LEFT JOIN tenants ON tenants.tenant = ?"
)
_PLACE = (
    "SELECT totals.sessions, COALESCE(tenants.sessions, 0), COALESCE(tenants.bytes, 0),"
    " sessions.expire_time, sessions.stored_bytes, tombstones.reason, tombstones.time"
    " FROM totals LEFT JOIN tenants ON tenants.tenant = ?1"
    " LEFT JOIN sessions ON sessions.id = ?2 LEFT JOIN tombstones ON tombstones.id = ?2"
)


class Victims(NamedTuple):
    """The sessions that go for a new one: the expired one of its id, and others with reasons."""

    replaced: str | None
    others: Sequence[tuple[str, Gone]]


def usage(db: sqlite3.Connection, tenant: str) -> StoreUsage:
    """See `Store.usage`."""
    return StoreUsage(*db.execute(_USAGE, (prefix(tenant),)).fetchone())


def snapshot_of_none(
    db: sqlite3.Connection, tombstones: Tombstones, session_id: str, now: float
) -> TurnSnapshot:
    """Returns what a turn begins with in a session that is unknown or has expired."""
    *counts, expire_time, _, reason, time = _place(db, session_id)
    gone = tombstones.reason(reason, time, now)
    if expire_time is not None and tombstones.are_kept:
        gone = Gone.EXPIRED
    return TurnSnapshot(has_expired=expire_time is not None, gone=gone, usage=StoreUsage(*counts))


def make_room(
    db: sqlite3.Connection, session_cache: SessionCache, tombstones: Tombstones, change: Commit
) -> Victims:
    """Finds what has to go for a new session, and raises what `Store.commit` does.

    Deletes only an expired session of the new one's id, and its tombstone.
    """
    session_id = change.session.id
    *counts, expire_time, stored_bytes, reason, _ = _place(db, session_id)
    usage = StoreUsage(*counts)
    if expire_time is not None:
        if expire_time > change.now:
            raise SessionExists(f"there is a session {own(session_id)!r} already")
        usage = room.without(usage, stored_bytes)
    room.check_bytes(change, usage)
    victims = room.victims(
        change,
        usage,
        expired=partial(find_expired, db, change.now),
        least_recently_used=partial(find_least_recently_used, db, tenant_of(session_id)),
    )
    if expire_time is not None:
        remove(db, session_cache, session_id)
    if reason is not None:
        tombstones.discard(db, session_id)
    return Victims(session_id if expire_time is not None else None, victims)


def remove_victims(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    tombstones: Tombstones,
    victims: Victims,
    now: float,
) -> list[RemovedSession]:
    """Deletes the victims, and returns all that was deleted for the new session.

    It comes after the insertion of that, which may be a fork of a victim.
    """
    for each, _ in victims.others:
        remove(db, session_cache, each)
    for why in Gone if victims.others else ():
        ids = [each for each, reason in victims.others if reason is why]
        tombstones.put(db, ids, why, now)
    removed = [RemovedSession(each, reason is Gone.EXPIRED) for each, reason in victims.others]
    if victims.replaced is not None:
        removed.insert(0, RemovedSession(victims.replaced, expired=True))
    return removed


def _place(db: sqlite3.Connection, session_id: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = db.execute(
        _PLACE, (prefix(tenant_of(session_id)), session_id)
    ).fetchone()
    return row
