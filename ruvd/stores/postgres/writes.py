"""The writes that create and change sessions in PostgreSQL, each fenced.

A turn takes its session: `owner` becomes the replica and `epoch` one more. Each write also makes
`epoch` one more. `Session.version` is the epoch that was read, and a commit names it: it changes
nothing if another replica has taken the session or written to it since, or has a turn in it. It
leaves its `write_id`, by which an unknown outcome is looked up.

A beginning does not wait for the disk. If a crash of the server loses it, another replica may take
the session, and the turn is refused as after a lease that is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core import tenants
from ruvd.core.errors import SessionNotFound
from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports import room
from ruvd.core.ports.replicas import Replica, SessionChanged
from ruvd.core.ports.store import Commit, RemovedSession, TombstoneLimits
from ruvd.stores.postgres import claims, ownership, places, reads
from ruvd.stores.postgres.reads import CHAIN, Connection, one
from ruvd.stores.postgres.removals import MAY_TAKE
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

_BEGIN = f"""
WITH seen AS (
    SELECT pk, epoch AS seen_epoch, owner, {MAY_TAKE} AS is_free FROM sessions WHERE id = %(id)s
), record AS (
    SELECT {RECORD_FIELDS} FROM receipts r
    LEFT JOIN messages m ON m.branch = r.session AND m.position = r.message_position
    WHERE %(request)s <> ''::bytea AND r.session = (SELECT pk FROM seen)
    AND r.request_id = %(request)s
), claimed AS (
    UPDATE sessions SET owner = %(me)s, last_owner = %(me)s, epoch = sessions.epoch + 1,
    last_used_time = %(now)s, expire_time = %(now)s + idle_timeout_seconds
    WHERE id = %(id)s AND expire_time > %(now)s AND {MAY_TAKE} AND NOT EXISTS (TABLE record)
    RETURNING {SESSION_FIELDS}
)
SELECT seen.seen_epoch, seen.owner, seen.is_free, CASE WHEN NOT seen.is_free THEN
(SELECT address FROM replicas r WHERE r.id = seen.owner AND r.until > clock_timestamp()) END,
set_config('synchronous_commit', 'off', true), {SESSION_FIELDS}, record.*
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
    " end_bytes = end_bytes + %(added)s, owner = %(keeper)s, epoch = epoch + 1,"
    " write_id = %(write)s"
    f" WHERE id = %(id)s AND epoch = %(version)s AND {MAY_TAKE}"
    " RETURNING pk, end_bytes - %(added)s AS end_before)"
)
# An epoch of an ended session is none of a new one with the same id.
_FIRST_EPOCH = "(random() * 4e18)::bigint"
_INSERT = (
    f"WITH target AS (INSERT INTO sessions ({SESSION_COLUMNS}, end_bytes, epoch, write_id, owner,"
    " last_owner)"
    f" VALUES ({SESSION_VALUES}, %(base_bytes)s + %(added)s, {_FIRST_EPOCH}, %(write)s, %(keeper)s,"
    " %(last_owner)s)"
    " RETURNING pk, %(base_bytes)s::bigint AS end_before)"
)


@dataclass(frozen=True, slots=True)
class Begun:
    """The outcome of `begin`: a session, which the turn has, or the reason for none.

    `exchanges` are those of its window. `former_owner` is the replica that the session was taken
    from, as its lease was over. `elsewhere` says that another living replica has the session, and
    `owner` is that one; None if it is not known.
    """

    session: Session | None = None
    exchanges: Sequence[Exchange] = ()
    record: IdempotencyRecord | None = None
    has_expired: bool = False
    elsewhere: bool = False
    owner: Replica | None = None
    former_owner: str = ""


async def begin(db: Connection, me: str, session_id: str, request_id: str, now: float) -> Begun:
    """Takes the session for a turn, unless the request was committed before."""
    values = {"id": session_id, "request": request_id.encode(), "me": me, "now": now}
    while True:
        async with db.pipeline():  # one answer of the server instead of two
            found = await db.execute(_BEGIN, values)
            window = await db.execute(reads.WINDOW, values)
        row = await found.fetchone()
        if row is None:
            return Begun()
        seen_epoch, owner, is_free, address = row[:4]
        fields, record = row[5 : 5 + FIELD_COUNT], row[-RECORD_COUNT:]
        session = to_session(fields) if fields[0] is not None else None
        if session and session.version != seen_epoch + 1:
            # A write came between, and may have committed this request.
            await ownership.give_back(db, me, (session_id,))
            continue
        if session:
            rows = await window.fetchall()
            history = reads.to_exchanges(session_id, session.window_start, rows)
            return Begun(session, history, former_owner=owner if owner not in (None, me) else "")
        if record[1] is None and not is_free:
            known = None if address is None else Replica(owner, address)
            return Begun(elsewhere=True, owner=known)
        current = await reads.get(db, session_id)
        if current is None:
            return Begun()
        has_expired = current.expire_time <= now and is_free
        if record[1] is not None and not has_expired:
            return Begun(current, record=to_record(record))
        return Begun(has_expired=has_expired, elsewhere=not has_expired)


def is_turn(change: Commit) -> bool:
    """Whether a turn makes the change, whose record names its completion."""
    record = change.idempotency_record
    return record is not None and bool(record.completion_id)


async def commit(
    db: Connection, me: str, change: Commit, write_id: str, keeper: str | None = None
) -> Row | None:
    """Changes a session in one statement. Returns its row, or None if it is not as expected.

    The session belongs to the `keeper` afterwards, which has the next turn in it, or to nobody.
    Raises QuotaExceeded for a refusable change. Those of one tenant wait for each other then.
    """
    position = change.session.message_count - len(change.appended)
    values = _values(change, position, write_id)
    values |= {"me": me, "version": change.session.version, "keeper": keeper}
    if change.max_own_bytes is None or not change.refusable:
        return await one(db, _UPDATE + _ADD, values)
    async with db.transaction():
        tenant = tenants.tenant_of(change.session.id)
        await places.lock(db, tenant)
        room.check_bytes(change, await places.usage(db, tenant, 0))
        return await one(db, _UPDATE + _ADD, values)


async def create(
    db: Connection,
    me: str,
    tombstones: TombstoneLimits,
    change: Commit,
    write_id: str,
    count: int,
    parent_id: str = "",
    keeper: str | None = None,
) -> list[RemovedSession]:
    """See `Store.commit` with `create`, and `Store.fork`; `count` is that of all sessions."""
    async with db.transaction():
        session = change.session
        shared = session.message_count - len(change.appended) if parent_id else 0
        values = _values(change, shared, write_id)
        if values["creates"]:
            await _check_first(db, values["request"], change)
        base = await _fork_base(db, parent_id, session.version, shared, session.exchange_count)
        removed = await places.make_room(db, me, tombstones, change, count)
        values |= {"base_bytes": base[2] if base else 0, "keeper": keeper}
        values["last_owner"] = me if is_turn(change) else None
        row = await one(db, _INSERT + _ADD, values)
        assert row is not None  # noqa: S101  # an INSERT that returned has a row
        if base:
            await db.execute(
                "INSERT INTO forks VALUES (%s, %s, %s, %s)", (row[0], base[0], shared, base[1])
            )
        if is_turn(change):
            await claims.give_up(db, me, session.id)
        return removed


async def _check_first(db: Connection, request_id: bytes, change: Commit) -> None:
    """Raises SessionChanged if another daemon has created a session under the request id."""
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (request_id.hex(),))
    query = (
        "SELECT 1 FROM receipts r JOIN sessions s ON s.pk = r.session"
        " WHERE r.request_id = %s AND r.creates AND s.expire_time > %s LIMIT 1"
    )
    if await one(db, query, (request_id, change.now)):
        raise SessionChanged(change.session.id)


async def _fork_base(
    db: Connection, parent_id: str, version: int, shared: int, exchange_count: int
) -> Row | None:
    """Returns (branch, exchange, end_bytes) of the last of the first `shared` messages.

    A child is attached to the branch that holds that message, so that chains stay short. The parent
    cannot be changed or deleted until the transaction has ended.
    """
    if not parent_id:
        return None
    found = await one(db, "SELECT epoch FROM sessions WHERE id = %s FOR SHARE", (parent_id,))
    if found is None:
        raise SessionNotFound(f"there is no session {parent_id!r}")
    if found[0] != version:
        raise SessionChanged(parent_id)
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
