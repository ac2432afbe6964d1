"""The writes that create and change sessions in the SQLite database.

Each public function implements one `Store` method on a connection. The worker rolls its changes
back if it raises, and clears the session cache then.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from ruvd.core.errors import SessionNotFound
from ruvd.core.model import IdempotencyRecord
from ruvd.core.ports import room
from ruvd.core.ports.store import Commit, RemovedSession, TurnSnapshot
from ruvd.core.tenants import prefix, tenant_of
from ruvd.stores.sqlite import history, places, reads
from ruvd.stores.sqlite.checksums import of_message
from ruvd.stores.sqlite.removals import announce_deleted_values, remove_labels
from ruvd.stores.sqlite.rows import (
    extra_column,
    figures_column,
    record_columns,
    session_columns,
    to_labels,
)
from ruvd.stores.sqlite.sealing import Sealer, label_rows, opener_of, sealer_of
from ruvd.stores.sqlite.session_cache import CachedSession, SessionCache
from ruvd.stores.sqlite.tombstones import Tombstones

# A window up to this size is read between writes, which takes well under a millisecond.
_MAX_WINDOW_MESSAGES = 200
_MAX_WINDOW_BYTES = 1 << 18
# The messages that one statement inserts, and the values that each of them has.
_MESSAGES_PER_INSERT = 100
_MESSAGE_VALUES = 8


def commit(
    db: sqlite3.Connection, session_cache: SessionCache, tombstones: Tombstones, change: Commit
) -> list[RemovedSession]:
    """See `Store.commit`."""
    session = change.session
    cached = CachedSession(session, ()) if change.create else session_cache.get(session.id)
    session_cache.drop(session.id)
    removed: list[RemovedSession] = []
    if change.create:
        victims = places.make_room(db, session_cache, tombstones, change)
        sealer = sealer_of(db, None)
        branch = _insert_session(db, change, 0, sealer)
        removed = places.remove_victims(db, session_cache, tombstones, victims, change.now)
        branch_end = branch, _append(db, branch, change, 0, 0, sealer)
    else:
        branch_end = _update_session(db, change, cached)
    cached = cached.after(session, change.appended, branch_end) if cached else None
    if cached:
        session_cache.put(cached)
    return removed


def fork(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    tombstones: Tombstones,
    change: Commit,
    parent_id: str,
) -> list[RemovedSession]:
    """See `Store.fork`."""
    parent = history.branch_of(db, parent_id)
    if parent is None:
        raise SessionNotFound(f"there is no session {parent_id!r}")
    shared = change.session.message_count - len(change.appended)
    base = _fork_base(db, parent, shared, change.session.exchange_count) if shared else None
    victims = places.make_room(db, session_cache, tombstones, change)
    end_bytes = base[2] if base else 0
    sealer = sealer_of(db, None)
    branch = _insert_session(db, change, end_bytes, sealer)
    if base:
        db.execute("INSERT INTO forks VALUES (?, ?, ?, ?)", (branch, base[0], shared, base[1]))
    _append(db, branch, change, shared, end_bytes, sealer)
    return places.remove_victims(db, session_cache, tombstones, victims, change.now)


def begin_turn(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    tombstones: Tombstones,
    session_id: str,
    request_id: str,
    now: float,
) -> TurnSnapshot:
    """See `Store.begin_turn`. Does not read a large window, as commits would wait for it."""
    cached = session_cache.get(session_id)
    session = cached.session if cached else reads.get(db, session_id)
    if session is None or session.expire_time <= now:
        return places.snapshot_of_none(db, tombstones, session_id, now)
    record = reads.idempotency_record(db, session_id, request_id) if request_id else None
    if record is not None:
        return TurnSnapshot(session, record)
    touched = replace(session, last_used_time=now)
    if session.is_touch_due(now):
        touch(db, session_cache, session_id, now)
        session = touched
    if cached is None:
        if session.size_bytes > _MAX_WINDOW_BYTES or session.message_count > _MAX_WINDOW_MESSAGES:
            return TurnSnapshot(touched)
        window = history.exchanges(db, session_id, session.window_start)
        cached = CachedSession(session, tuple(window))
    session_cache.put(replace(cached, session=session))
    return TurnSnapshot(touched, exchanges=cached.exchanges)


def begin_turn_cached(
    session_cache: SessionCache, session_id: str, request_id: str, now: float
) -> TurnSnapshot | None:
    """Returns what `begin_turn` would return, or None if that needs the database."""
    cached = None if request_id else session_cache.get(session_id)
    if cached is None or cached.session.is_touch_due(now):
        return None
    return TurnSnapshot(replace(cached.session, last_used_time=now), exchanges=cached.exchanges)


def touch(db: sqlite3.Connection, session_cache: SessionCache, session_id: str, now: float) -> bool:
    """See `Store.touch`."""
    session_cache.drop(session_id)
    cursor = db.execute(
        "UPDATE sessions SET last_used_time = ?1, expire_time = ?1 + idle_timeout_seconds"
        " WHERE id = ?2",
        (now, session_id),
    )
    return cursor.rowcount > 0


def _insert_session(
    db: sqlite3.Connection, change: Commit, end_bytes: int, sealer: Sealer | None
) -> int:
    """Inserts the session's row and labels and returns its `pk`."""
    session = change.session
    end_bytes += sum(message.size_bytes for _, message in change.appended)
    *columns, compaction = session_columns(session, end_bytes, sealer)
    branch = db.execute(
        "INSERT INTO sessions VALUES"
        " (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *columns,
            prefix(tenant_of(session.id)),
            room.stored_bytes(session),
            compaction,
        ),
    ).lastrowid
    assert branch is not None  # noqa: S101 - an INSERT that returned has a row id
    if sealer is not None:
        sealer.store(branch)
    _insert_labels(db, branch, session.labels)
    return branch


def _update_session(
    db: sqlite3.Connection, change: Commit, cached: CachedSession | None
) -> tuple[int, int]:
    """Updates the session's row and labels, and returns its `pk` and its new `end_bytes`."""
    session = change.session
    if cached and cached.branch_end:
        (branch, end_bytes), position = cached.branch_end, cached.session.message_count
        old_labels: Mapping[str, str] | None = cached.session.labels
    else:
        row = db.execute(
            "SELECT pk, message_count, end_bytes, labels, create_time FROM sessions WHERE id = ?",
            (session.id,),
        ).fetchone()
        if row is None:
            raise SessionNotFound(f"there is no session {session.id!r}")
        branch, position, end_bytes, labels, create_time = row
        old_labels = to_labels(branch, session.id, labels, opener_of(db))
        expected = session.message_count - len(change.appended), session.create_time
        if (position, create_time) != expected:
            # The file was replaced since the turn began. The session in it must not be changed.
            raise SessionNotFound(f"the stored session {session.id!r} is another by now")
    if change.max_own_bytes is not None:
        room.check_bytes(change, places.usage(db, tenant_of(session.id)))
    added_bytes = sum(message.size_bytes for _, message in change.appended)
    sealer = sealer_of(db, branch)
    db.execute(
        "UPDATE sessions SET id = ?, create_time = ?, last_used_time = ?,"
        " idle_timeout_seconds = ?, expire_time = ?, message_count = ?, exchange_count = ?,"
        " size_bytes = ?, end_bytes = ?, window_start = ?, context_tokens = ?,"
        " context_bytes = ?, prompt_tokens = ?, cached_tokens = ?, completion_tokens = ?,"
        " keep_exchanges = ?, max_exchanges = ?, max_tokens = ?, rendering = ?,"
        " parent_id = ?, model = ?, labels = ?, system_prompt = ?, checksum = ?,"
        " compaction = ?, stored_bytes = ? WHERE pk = ?",
        (
            *session_columns(session, end_bytes + added_bytes, sealer),
            room.stored_bytes(session),
            branch,
        ),
    )
    if old_labels != session.labels:
        remove_labels(db, branch, old_labels)
        announce_deleted_values(db)
        _insert_labels(db, branch, session.labels)
    return branch, _append(db, branch, change, position, end_bytes, sealer)


def _append(
    db: sqlite3.Connection,
    branch: int,
    change: Commit,
    position: int,
    end_bytes: int,
    sealer: Sealer | None,
) -> int:
    """Inserts the messages and the idempotency record; returns the branch's new `end_bytes`."""
    values: list[object] = []
    for place, (exchange, message) in enumerate(change.appended, start=position):
        end_bytes += message.size_bytes
        role, extra = message.role.value, extra_column(message)
        content: str | bytes = message.content
        if sealer is not None:
            content = sealer.message((branch, exchange, place), role, message.content, extra)
            extra = None
        checksum = of_message((branch, exchange, place), role, content, extra)
        values += (branch, exchange, place, end_bytes, role, content, extra, checksum)
    last_message: int | None = None
    for start in range(0, len(values), _MESSAGES_PER_INSERT * _MESSAGE_VALUES):
        part = values[start : start + _MESSAGES_PER_INSERT * _MESSAGE_VALUES]
        rows = ", ".join(["(NULL, ?, ?, ?, ?, ?, ?, ?, ?)"] * (len(part) // _MESSAGE_VALUES))
        last_message = db.execute(f"INSERT INTO messages VALUES {rows}", part).lastrowid  # noqa: S608
    if change.idempotency_record is not None:
        _insert_record(db, branch, change.idempotency_record, change, last_message, sealer)
    return end_bytes


def _insert_record(
    db: sqlite3.Connection,
    branch: int,
    record: IdempotencyRecord,
    change: Commit,
    last_message: int | None,
    sealer: Sealer | None,
) -> None:
    figures = message = None
    if record.finished is not None:
        if change.appended and change.appended[-1][1] == record.finished.message:
            message = last_message
        figures = figures_column(record.finished, with_message=message is None)
    if record.request_id:
        cursor = db.execute(
            "DELETE FROM receipts WHERE session = ? AND request_id = ?", (branch, record.request_id)
        )
        if cursor.rowcount:
            announce_deleted_values(db)
    creates = change.create and bool(record.request_id) and not record.completion_id
    db.execute(
        "INSERT INTO receipts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        record_columns(record, branch, message, figures, creates=creates, sealer=sealer),
    )


def _fork_base(
    db: sqlite3.Connection, branch: int, shared: int, exchange_count: int
) -> tuple[int, int, int]:
    """Returns (branch, exchange, end_bytes) of the last of the first `shared` messages.

    A child is attached to the branch that holds that message, so that chains stay short.
    """
    owner, (parent, base_position, _) = branch, history.fork_of(db, branch)
    while parent is not None and shared <= base_position:
        owner, (parent, base_position, _) = parent, history.fork_of(db, parent)
    row = db.execute(
        "SELECT exchange, end_bytes, position FROM messages"
        " WHERE branch = ? AND exchange <= ? AND position < ?"
        " ORDER BY exchange DESC, position DESC LIMIT 1",
        (owner, exchange_count, shared),
    ).fetchone()
    if row is None or row[2] != shared - 1:
        raise ValueError(f"the parent has no {shared} messages to share")
    return owner, row[0], row[1]


def _insert_labels(db: sqlite3.Connection, branch: int, labels: Mapping[str, str]) -> None:
    for key, value in label_rows(db, labels):
        db.execute("INSERT INTO labels VALUES (?, ?, ?)", (key, value, branch))
