"""The writes that create and change sessions in PostgreSQL, each fenced.

A turn takes its session: `owner` becomes the replica and `epoch` one more. The turn's commit names
that epoch, so that it changes nothing if another replica has taken the session or written to it
meanwhile. Other writes need a session that no other living replica has. Each write makes `epoch`
one more, names the message count that it is made for, and leaves its `write_id`, by which an
unknown outcome is looked up.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ruvd.core.errors import SessionNotFound
from ruvd.core.model import IdempotencyRecord, Session
from ruvd.core.ports.store import Commit, RemovedSession, TombstoneLimits
from ruvd.stores.postgres import places, reads
from ruvd.stores.postgres.reads import CHAIN, Connection, one
from ruvd.stores.postgres.rows import (
    FIELD_COUNT,
    RECORD_COUNT,
    RECORD_FIELDS,
    SESSION_COLUMNS,
    SESSION_FIELDS,
    SESSION_VALUES,
    Row,
    extra_column,
    figures_column,
    session_values,
    to_record,
    to_session,
)

# The owner of a session is alive: its lease lasts by the database's clock.
OWNER_LIVES = (
    "EXISTS (SELECT 1 FROM replicas r WHERE r.id = sessions.owner AND r.until > clock_timestamp())"
)
# A session that this replica may take: nobody's, its own, or one of a replica that is gone.
MAY_TAKE = f"(sessions.owner IS NULL OR sessions.owner = %(me)s OR NOT {OWNER_LIVES})"
_BEGIN = f"""
WITH seen AS (
    SELECT pk, epoch, owner FROM sessions WHERE id = %(id)s
), record AS (
    SELECT {RECORD_FIELDS} FROM receipts r
    LEFT JOIN messages m ON m.branch = r.session AND m.position = r.message_position
    WHERE %(request)s <> ''::bytea AND r.session = (SELECT pk FROM seen)
    AND r.request_id = %(request)s
), claimed AS (
    UPDATE sessions SET owner = %(me)s, epoch = sessions.epoch + 1, last_used_time = %(now)s,
    expire_time = %(now)s + idle_timeout_seconds
    WHERE id = %(id)s AND expire_time > %(now)s AND {MAY_TAKE} AND NOT EXISTS (TABLE record)
    RETURNING {SESSION_FIELDS}, epoch
)
SELECT claimed.epoch, seen.epoch, seen.owner, {SESSION_FIELDS}, record.*
FROM seen LEFT JOIN claimed ON true LEFT JOIN record ON true
"""
_ADD = """
, added AS (
    INSERT INTO messages (branch, position, exchange, end_bytes, role, content, extra)
    SELECT target.pk, %(position)s + m.place, m.exchange, target.end_before + m.size, m.role,
    m.content, m.extra FROM target, unnest(%(places)s::bigint[], %(exchanges)s::bigint[],
    %(sizes)s::bigint[], %(roles)s::text[], %(contents)s::bytea[], %(extras)s::text[])
    AS m (place, exchange, size, role, content, extra)
), recorded AS (
    INSERT INTO receipts (session, request_id, creates, digest, completion_id, last_sequence,
    message_position, figures) SELECT target.pk, %(request)s, %(creates)s, %(digest)s,
    %(completion)s, %(sequence)s, %(answer)s, %(figures)s FROM target WHERE %(has_record)s
    ON CONFLICT (session, request_id) WHERE request_id <> '' DO UPDATE SET
    creates = excluded.creates, digest = excluded.digest, completion_id = excluded.completion_id,
    last_sequence = excluded.last_sequence, message_position = excluded.message_position,
    figures = excluded.figures
)
SELECT pk FROM target
"""
_UPDATE = (
    f"WITH target AS (UPDATE sessions SET ({SESSION_COLUMNS}) = ROW({SESSION_VALUES}),"
    " end_bytes = end_bytes + %(added)s, owner = NULL, epoch = epoch + 1, write_id = %(write)s"
    " WHERE id = %(id)s AND create_time = %(new_create_time)s AND message_count = %(position)s"
    f" AND CASE WHEN %(epoch)s::bigint IS NULL THEN {MAY_TAKE} ELSE epoch = %(epoch)s END"
    " RETURNING pk, end_bytes - %(added)s AS end_before)"
)
# An epoch of an ended session is none of a new one with the same id.
_FIRST_EPOCH = "(random() * 4e18)::bigint"
_INSERT = (
    f"WITH target AS (INSERT INTO sessions ({SESSION_COLUMNS}, end_bytes, epoch, write_id)"
    f" VALUES ({SESSION_VALUES}, %(base_bytes)s + %(added)s, {_FIRST_EPOCH}, %(write)s)"
    " RETURNING pk, %(base_bytes)s::bigint AS end_before)"
)


@dataclass(frozen=True, slots=True)
class Begun:
    """The outcome of `begin`: a session with the epoch of the turn, or the reason for none.

    `former_owner` is the replica that the session was taken from, as its lease was over.
    `elsewhere` says that another living replica has the session.
    """

    session: Session | None = None
    epoch: int = 0
    record: IdempotencyRecord | None = None
    has_expired: bool = False
    elsewhere: bool = False
    former_owner: str = ""


async def begin(db: Connection, me: str, session_id: str, request_id: str, now: float) -> Begun:
    """Takes the session for a turn, unless the request was committed before."""
    values = {"id": session_id, "request": request_id.encode(), "me": me, "now": now}
    while True:
        row = await one(db, _BEGIN, values)
        if row is None:
            return Begun()
        epoch, seen_epoch, owner = row[:3]
        session, record = row[3 : 3 + FIELD_COUNT], row[-RECORD_COUNT:]
        if epoch is not None and epoch != seen_epoch + 1:
            # A write came between, and may have committed this request.
            await give_back(db, me, (session_id,))
            continue
        if epoch is not None:
            former = owner if owner and owner != me else ""
            return Begun(to_session(session), epoch, former_owner=former)
        current = await reads.get(db, session_id)
        if current is None:
            return Begun()
        if current.expire_time <= now:
            return Begun(has_expired=True)
        if record[1] is not None:
            return Begun(current, record=to_record(record))
        return Begun(elsewhere=True)


async def commit(
    db: Connection, me: str, change: Commit, epoch: int | None, write_id: str
) -> Row | None:
    """Changes a session in one statement. Returns its row, or None if it is not as expected."""
    position = change.session.message_count - len(change.appended)
    values = _values(change, position, write_id) | {"me": me, "epoch": epoch}
    return await one(db, _UPDATE + _ADD, values)


async def create(
    db: Connection,
    me: str,
    tombstones: TombstoneLimits,
    change: Commit,
    write_id: str,
    count: int,
    parent_id: str = "",
) -> list[RemovedSession]:
    """See `Store.commit` with `create`, and `Store.fork`; `count` is that of all sessions."""
    async with db.transaction():
        session = change.session
        shared = session.message_count - len(change.appended) if parent_id else 0
        base = await _fork_base(db, parent_id, shared, session.exchange_count)
        removed = await places.make_room(db, me, tombstones, change, count)
        values = _values(change, shared, write_id) | {"base_bytes": base[2] if base else 0}
        row = await one(db, _INSERT + _ADD, values)
        assert row is not None  # noqa: S101  # an INSERT that returned has a row
        if base:
            await db.execute(
                "INSERT INTO forks VALUES (%s, %s, %s, %s)", (row[0], base[0], shared, base[1])
            )
        return removed


async def was_written(db: Connection, session_id: str, write_id: str) -> bool:
    """Whether the session's last write is the one with this id."""
    row = await one(db, "SELECT write_id FROM sessions WHERE id = %s", (session_id,))
    return row is not None and row[0] == write_id


async def touch(db: Connection, session_id: str, now: float, epoch: int | None) -> bool:
    """See `Store.touch`. Gives the session back if the turn of this epoch still has it."""
    row = await one(
        db,
        "UPDATE sessions SET last_used_time = %(now)s,"
        " expire_time = %(now)s + idle_timeout_seconds,"
        " owner = CASE WHEN epoch = %(epoch)s THEN NULL ELSE owner END"
        " WHERE id = %(id)s RETURNING pk",
        {"id": session_id, "now": now, "epoch": epoch},
    )
    return row is not None


async def give_back(db: Connection, me: str, session_ids: Collection[str]) -> None:
    """Gives sessions back that this replica may still have without a turn."""
    await db.execute(
        "UPDATE sessions SET owner = NULL WHERE owner = %s AND id = ANY(%s)",
        (me, list(session_ids)),
    )


async def _fork_base(
    db: Connection, parent_id: str, shared: int, exchange_count: int
) -> Row | None:
    """Returns (branch, exchange, end_bytes) of the last of the first `shared` messages.

    A child is attached to the branch that holds that message, so that chains stay short. The parent
    cannot be deleted until the transaction has ended.
    """
    if not parent_id:
        return None
    found = await one(db, "SELECT pk FROM sessions WHERE id = %s FOR SHARE", (parent_id,))
    if found is None:
        raise SessionNotFound(f"there is no session {parent_id!r}")
    if not shared:
        return None
    row = await one(
        db,
        CHAIN + "SELECT m.branch, m.exchange, m.end_bytes FROM chain JOIN messages m"
        " ON m.branch = chain.branch AND m.position = %(last)s"
        " WHERE m.position < chain.until AND m.exchange <= %(count)s",
        {"id": parent_id, "last": shared - 1, "count": exchange_count},
    )
    if row is None:
        raise ValueError(f"the parent has no {shared} messages to share")
    return row


def _values(change: Commit, position: int, write_id: str) -> dict[str, Any]:
    """Returns the parameters of the statements that insert or update a session."""
    sizes: list[int] = []
    for _, message in change.appended:
        sizes.append((sizes[-1] if sizes else 0) + message.size_bytes)
    messages = [message for _, message in change.appended]
    record = change.idempotency_record
    answer = figures = None
    if record and record.finished:
        is_last = bool(messages) and messages[-1] == record.finished.message
        answer = position + len(messages) - 1 if is_last else None
        figures = figures_column(record.finished, with_message=not is_last)
    return {
        **session_values(change.session),
        "id": change.session.id,
        "write": write_id,
        "position": position,
        "added": sizes[-1] if sizes else 0,
        "places": list(range(len(messages))),
        "exchanges": [exchange for exchange, _ in change.appended],
        "sizes": sizes,
        "roles": [message.role.value for message in messages],
        "contents": [message.content.encode() for message in messages],
        "extras": [extra_column(message) for message in messages],
        "has_record": record is not None,
        "request": record.request_id.encode() if record else b"",
        "creates": change.create
        and record is not None
        and bool(record.request_id)
        and not record.completion_id,
        "digest": record.digest if record else b"",
        "completion": record.completion_id if record else "",
        "sequence": record.last_sequence if record else 0,
        "answer": answer,
        "figures": figures,
    }
