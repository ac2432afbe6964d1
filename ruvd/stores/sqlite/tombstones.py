"""The tombstones in the SQLite database: which sessions have gone, and why."""

import sqlite3
from collections.abc import Iterable

from ruvd.core import tenants
from ruvd.core.ports.store import Gone, TombstoneLimits

# The limit that `Store.expire` promises.
_MAX_PRUNED = 1_000


class Tombstones:
    """Reads and writes tombstones on a connection, within their limits. It has no other state."""

    def __init__(self, limits: TombstoneLimits) -> None:
        self._limits = limits

    @property
    def are_kept(self) -> bool:
        """Whether there are tombstones at all."""
        return self._limits.retention_seconds > 0

    def reason(self, reason: str | None, time: float | None, now: float) -> Gone | None:
        """Returns the reason in a row of the table if that still counts; None for no row."""
        if reason is None or time is None or time <= now - self._limits.retention_seconds:
            return None
        return Gone.EVICTED if reason == Gone.EVICTED.value else Gone.EXPIRED

    def gone(self, db: sqlite3.Connection, session_id: str, now: float) -> Gone | None:
        """See `Store.gone`."""
        row = db.execute("SELECT expire_time FROM sessions WHERE id = ?", (session_id,)).fetchone()
        if row is not None:
            return Gone.EXPIRED if self.are_kept and row[0] <= now else None
        row = db.execute(
            "SELECT reason, time FROM tombstones WHERE id = ?", (session_id,)
        ).fetchone()
        return self.reason(row[0], row[1], now) if row else None

    def put(
        self, db: sqlite3.Connection, session_ids: Iterable[str], reason: Gone, now: float
    ) -> None:
        """Makes a tombstone of each session, and deletes the oldest ones beyond the limits."""
        if not self.are_kept:
            return
        prefixes = {each: tenants.prefix(tenants.tenant_of(each)) for each in session_ids}
        db.executemany(
            "INSERT INTO tombstones (id, tenant, reason, time) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, time = excluded.time",
            [(each, prefix, reason.value, now) for each, prefix in prefixes.items()],
        )
        for prefix in set(prefixes.values()):
            own, total = db.execute(
                "SELECT tenants.tombstones, totals.tombstones FROM totals, tenants"
                " WHERE tenants.tenant = ?",
                (prefix,),
            ).fetchone()
            if (surplus := own - self._limits.max_of_tenant) > 0:
                db.execute(
                    "DELETE FROM tombstones WHERE pk IN"
                    " (SELECT pk FROM tombstones WHERE tenant = ? ORDER BY pk LIMIT ?)",
                    (prefix, surplus),
                )
                total -= surplus
            if (surplus := total - self._limits.max_in_all) > 0:
                db.execute(
                    "DELETE FROM tombstones WHERE pk IN"
                    " (SELECT pk FROM tombstones ORDER BY pk LIMIT ?)",
                    (surplus,),
                )

    def discard(self, db: sqlite3.Connection, session_id: str) -> None:
        """Deletes the session's tombstone if there is one."""
        db.execute("DELETE FROM tombstones WHERE id = ?", (session_id,))

    def prune(self, db: sqlite3.Connection, now: float) -> None:
        """Deletes the first ones, up to a number, that no longer count."""
        db.execute(
            "DELETE FROM tombstones WHERE time <= ?1 AND pk IN"
            " (SELECT pk FROM tombstones ORDER BY pk LIMIT ?2)",
            (now - self._limits.retention_seconds, _MAX_PRUNED),
        )
