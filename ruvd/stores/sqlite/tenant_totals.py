"""The sums of each tenant's sessions, for an administrator."""

import json
import sqlite3
from collections.abc import Collection

from ruvd.core import tenants
from ruvd.core.ports.store import TenantCounts

# The tenant is the id up to its last slash: rtrim takes off whatever follows that.
_TENANT_COUNTS = """
    SELECT
        CASE prefix WHEN '' THEN ? ELSE substr(prefix, 1, length(prefix) - 1) END AS tenant,
        COUNT(*),
        SUM(expire_time > ? OR id IN (SELECT value FROM json_each(?))),
        SUM(message_count),
        SUM(size_bytes)
    FROM (
        SELECT rtrim(id, replace(id, '/', '')) AS prefix, id, expire_time, message_count, size_bytes
        FROM sessions
    )
    GROUP BY tenant HAVING tenant > ? ORDER BY tenant LIMIT ?
"""


def tenant_counts(
    db: sqlite3.Connection,
    now: float,
    after: str,
    limit: int,
    active_or_in_turn: Collection[str],
) -> list[TenantCounts]:
    """See `Store.tenants`. Reads no messages."""
    in_turn = json.dumps(list(active_or_in_turn))
    rows = db.execute(_TENANT_COUNTS, (tenants.DEFAULT, now, in_turn, after, limit))
    return [TenantCounts(*row) for row in rows.fetchall()]
