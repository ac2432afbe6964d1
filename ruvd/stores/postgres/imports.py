"""The import of whole sessions into a PostgreSQL store, as another store had them."""

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any

from ruvd.core import tenants
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import Observer
from ruvd.core.ports.migration import SharedPart, StoredRecord, StoredSession, Tombstone
from ruvd.core.ports.store import StoreCounts
from ruvd.stores.postgres import reads, schema
from ruvd.stores.postgres.connections import Connections
from ruvd.stores.postgres.reads import Connection, every, one
from ruvd.stores.postgres.rows import (
    RECORD_COUNT,
    RECORD_FIELDS,
    SESSION_COLUMNS,
    SESSION_VALUES,
    extra_column,
    figures_column,
    session_values,
    to_record,
)

_CONNECTIONS = 2
_TIMEOUT_SECONDS = 30.0
_INSERT = (
    f"INSERT INTO sessions ({SESSION_COLUMNS}, end_bytes, epoch, write_id)"
    f" VALUES ({SESSION_VALUES}, %(end_bytes)s, (random() * 4e18)::bigint, '')"
    " RETURNING pk"
)
_INSERT_RECORD = (
    "INSERT INTO receipts (session, request_id, creates, digest, completion_id, last_sequence,"
    " message_position, figures) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)
_RECORDS = (
    f"SELECT {RECORD_FIELDS}, r.creates, r.message_position FROM receipts r"
    " LEFT JOIN messages m ON m.branch = r.session AND m.position = r.message_position"
    " WHERE r.session = (SELECT pk FROM sessions WHERE id = %s) ORDER BY r.pk"
)
_ADD_TOMBSTONES = (
    "INSERT INTO tombstones (id, tenant, reason, time) SELECT t.id, t.tenant, t.reason, t.time"
    " FROM unnest(%(ids)s::text[], %(tenants)s::text[], %(reasons)s::text[],"
    " %(times)s::double precision[]) AS t (id, tenant, reason, time)"
    " WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = t.id) ON CONFLICT (id) DO NOTHING"
)
_COPY_MESSAGES = (
    "COPY messages (branch, position, exchange, end_bytes, role, content, extra) FROM STDIN"
)


class ImportTarget:
    """A PostgreSQL store that no daemon has open, to which sessions are added.

    Every method raises StoreUnavailable if the database cannot be used, and then changed nothing.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        password: Callable[[], str] = lambda: "",
        prepare: bool = True,
        observer: Observer = lambda event: None,
    ) -> None:
        self._connections = Connections(
            conninfo,
            password=password,
            size=_CONNECTIONS,
            timeout_seconds=_TIMEOUT_SECONDS,
            prepare=prepare,
            observer=observer,
        )
        self._is_new = False

    async def open(self, *, may_write: bool) -> None:
        """Connects, and brings the schema up to date if it `may_write`.

        Raises StoreUnavailable also if a daemon has a lease in the database.
        """
        await self._connections.open()
        if may_write:
            await self._connections.run(schema.migrate)
        found = await self._connections.run(
            lambda db: one(db, "SELECT to_regclass('sessions'), to_regclass('replicas')", ())
        )
        self._is_new = found is None or None in found
        if not self._is_new and await self._connections.run(_has_replicas):
            raise StoreUnavailable(
                "a daemon has the target open: stop it, and start it again after the migration."
                " One that was killed counts for its lease, 10 s if nothing else is set"
            )

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        await self._connections.close()

    async def present(self, session_ids: Collection[str]) -> set[str]:
        """Returns the ids among these that the target has a session of."""
        if self._is_new:
            return set()
        rows = await self._connections.run(
            lambda db: every(db, "SELECT id FROM sessions WHERE id = ANY(%s)", (list(session_ids),))
        )
        return {row[0] for row in rows}

    async def session(self, session_id: str) -> StoredSession | None:
        """Returns all of a session, or None if it is unknown."""
        return await self._connections.run(lambda db: _session(db, session_id))

    async def counts(self) -> StoreCounts:
        """Returns how much the target has."""
        return await self._connections.run(lambda db: reads.counts(db, 0.0, (), None))

    async def add(self, sessions: Sequence[tuple[StoredSession, SharedPart | None]]) -> None:
        """Adds sessions that the target has not, in one transaction.

        What a fork shares is not stored again if the target has the other session.
        """

        async def add(db: Connection) -> None:
            async with db.transaction():
                for stored, shared in sessions:
                    await _add(db, stored, shared)

        await self._connections.run(add)

    async def add_tombstones(self, tombstones: Sequence[Tombstone]) -> None:
        """Adds tombstones of sessions that the target does not have."""
        values = {
            "ids": [each.session_id for each in tombstones],
            "tenants": [tenants.prefix(tenants.tenant_of(each.session_id)) for each in tombstones],
            "reasons": [each.reason.value for each in tombstones],
            "times": [each.time for each in tombstones],
        }

        async def add(db: Connection) -> None:
            await db.execute(_ADD_TOMBSTONES, values)

        await self._connections.run(add)


async def _has_replicas(db: Connection) -> bool:
    query = "SELECT 1 FROM replicas WHERE until > clock_timestamp() LIMIT 1"
    return await one(db, query, ()) is not None


async def _session(db: Connection, session_id: str) -> StoredSession | None:
    session = await reads.get(db, session_id)
    if session is None:
        return None
    exchanges = await reads.exchanges(db, session_id, 0)
    rows = await every(db, _RECORDS, (session_id,))
    records = [StoredRecord(to_record(row[:RECORD_COUNT]), row[-2], row[-1]) for row in rows]
    return StoredSession(session, exchanges, records)


async def _add(db: Connection, stored: StoredSession, shared: SharedPart | None) -> None:
    messages = [
        (number, message) for number, each in enumerate(stored.exchanges) for message in each
    ]
    ends = list(accumulate(message.size_bytes for _, message in messages))
    values = session_values(stored.session) | {"end_bytes": ends[-1] if ends else 0}
    row = await one(db, _INSERT, values)
    assert row is not None  # noqa: S101  # an INSERT that returned has a row
    branch = row[0]
    first = 0
    if shared is not None:
        owner = await one(db, "SELECT pk FROM sessions WHERE id = %s", (shared.owner_id,))
        if owner is not None:
            first = shared.messages
            await db.execute(
                "INSERT INTO forks VALUES (%s, %s, %s, %s)",
                (branch, owner[0], first, shared.last_exchange),
            )
    async with db.cursor() as cursor, cursor.copy(_COPY_MESSAGES) as copy:
        for position in range(first, len(messages)):
            exchange, message = messages[position]
            await copy.write_row(
                (
                    *(branch, position, exchange, ends[position], message.role.value),
                    *(message.content.encode(), extra_column(message)),
                )
            )
    if stored.records:
        async with db.cursor() as cursor:
            rows = [_record_values(branch, each) for each in stored.records]
            await cursor.executemany(_INSERT_RECORD, rows)


def _record_values(branch: int, stored: StoredRecord) -> tuple[Any, ...]:
    record = stored.record
    figures = None
    if record.finished is not None:
        figures = figures_column(record.finished, with_message=stored.position is None)
    return (
        branch,
        record.request_id.encode(),
        stored.creates,
        record.digest,
        record.completion_id,
        record.last_sequence,
        stored.position,
        figures,
    )
