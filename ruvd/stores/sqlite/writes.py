"""What is written to the SQLite database: each function is one `Store` method, inside a savepoint
that the caller has opened, so that raising undoes it. `hot` is forgotten with what it is undone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice

from ruvd.core.errors import SessionExists, SessionNotFound
from ruvd.core.model import IdempotencyRecord
from ruvd.core.ports.store import Commit, RemovedSession, TurnSnapshot
from ruvd.stores.sqlite import reads
from ruvd.stores.sqlite.rows import extra_of, figures_of, session_values
from ruvd.stores.sqlite.session_cache import CachedSession, SessionCache

_EXPIRE_AT_ONCE = 1_000
# What a turn's window may have to be read beside writes: well under a millisecond.
_MOST_MESSAGES = 200
_MOST_BYTES = 1 << 18
# Messages that one statement writes, and the values of each.
_MOST_AT_ONCE = 100
_MESSAGE_VALUES = 7

_BY_EXPIRY = "SELECT id FROM sessions WHERE expire_time <= ? ORDER BY expire_time, pk"
_BY_USE = "SELECT id FROM sessions ORDER BY last_used_time, pk"


def commit(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit
) -> list[RemovedSession]:
    """See `Store.commit`."""
    session = change.session
    known = CachedSession(session, ()) if change.create else session_cache.get(session.id)
    session_cache.drop(session.id)
    removed: list[RemovedSession] = []
    if change.create:
        removed = _remove_expired(db, session_cache, change)
        branch = _insert(db, change, 0)
        place = branch, _append(db, branch, change, 0, 0)
    else:
        place = _update(db, change, known)
    removed += _evict(db, session_cache, change)
    after = known.after(session, change.appended, place) if known else None
    if after:
        session_cache.put(after)
    return removed


def fork(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit, parent_id: str
) -> list[RemovedSession]:
    """See `Store.fork`."""
    row = db.execute("SELECT pk FROM sessions WHERE id = ?", (parent_id,)).fetchone()
    if row is None:
        raise SessionNotFound(f"there is no session {parent_id!r}")
    shared = change.session.message_count - len(change.appended)
    base = _base(db, row[0], shared, change.session.exchange_count) if shared else None
    removed = _remove_expired(db, session_cache, change)
    end_bytes = base[2] if base else 0
    branch = _insert(db, change, end_bytes)
    if base:
        db.execute("INSERT INTO forks VALUES (?, ?, ?, ?)", (branch, base[0], shared, base[1]))
    _append(db, branch, change, shared, end_bytes)
    return removed + _evict(db, session_cache, change)


def begin_turn(
    db: sqlite3.Connection,
    session_cache: SessionCache,
    session_id: str,
    request_id: str,
    now: float,
) -> TurnSnapshot:
    """See `Store.begin_turn`. A long window is left to the reader: nobody's commit waits for it."""
    known = session_cache.get(session_id)
    session = known.session if known else reads.get(db, session_id)
    if session is None or session.expire_time <= now:
        return TurnSnapshot(has_expired=session is not None)
    idempotency_record = (
        reads.idempotency_record(db, session_id, request_id) if request_id else None
    )
    if idempotency_record is not None:
        return TurnSnapshot(session, idempotency_record)
    touched = replace(session, last_used_time=now)
    if session.is_touch_due(now):
        touch(db, session_cache, session_id, now)
        session = touched
    if known is None:
        if session.size_bytes > _MOST_BYTES or session.message_count > _MOST_MESSAGES:
            return TurnSnapshot(touched)
        known = CachedSession(session, tuple(reads.exchanges(db, session_id, session.window_start)))
    session_cache.put(replace(known, session=session))
    return TurnSnapshot(touched, exchanges=known.exchanges)


def begin_turn_cached(
    session_cache: SessionCache, session_id: str, request_id: str, now: float
) -> TurnSnapshot | None:
    """The same without the database; None if it needs that."""
    known = None if request_id else session_cache.get(session_id)
    if known is None or known.session.is_touch_due(now):
        return None
    return TurnSnapshot(replace(known.session, last_used_time=now), exchanges=known.exchanges)


def touch(db: sqlite3.Connection, session_cache: SessionCache, session_id: str, now: float) -> bool:
    """See `Store.touch`."""
    session_cache.drop(session_id)
    cursor = db.execute(
        "UPDATE sessions SET last_used_time = ?1, expire_time = ?1 + idle_timeout_seconds"
        " WHERE id = ?2",
        (now, session_id),
    )
    return cursor.rowcount > 0


def end(db: sqlite3.Connection, session_cache: SessionCache, session_id: str) -> bool:
    """See `Store.end`."""
    row = db.execute("SELECT pk, labels FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        return False
    session_cache.drop(session_id)
    _delete(db, row[0], json.loads(row[1]))
    return True


def expire(
    db: sqlite3.Connection, session_cache: SessionCache, now: float, protected: Collection[str]
) -> list[str]:
    """See `Store.expire`."""
    expired = _first(db.execute(_BY_EXPIRY, (now,)), _EXPIRE_AT_ONCE, protected)
    for session_id in expired:
        end(db, session_cache, session_id)
    return expired


def _remove_expired(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit
) -> list[RemovedSession]:
    """Makes room for a new session. Raises SessionExists if its id has not expired."""
    row = db.execute(
        "SELECT pk, labels, expire_time FROM sessions WHERE id = ?", (change.session.id,)
    ).fetchone()
    if row is None:
        return []
    if row[2] > change.now:
        raise SessionExists(f"there is a session {change.session.id!r} already")
    session_cache.drop(change.session.id)
    _delete(db, row[0], json.loads(row[1]))
    return [RemovedSession(change.session.id, expired=True)]


def _insert(db: sqlite3.Connection, change: Commit, end_bytes: int) -> int:
    end_bytes += sum(message.size_bytes for _, message in change.appended)
    branch = db.execute(
        "INSERT INTO sessions VALUES"
        " (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        session_values(change.session, end_bytes),
    ).lastrowid
    assert branch is not None  # noqa: S101 - an INSERT that returned has a row id
    db.execute("UPDATE totals SET sessions = sessions + 1")
    _label(db, branch, change.session.labels)
    return branch


def _update(db: sqlite3.Connection, change: Commit, known: CachedSession | None) -> tuple[int, int]:
    """Its `pk` and `end_bytes` as they are then."""
    session = change.session
    if known and known.place:
        (branch, end_bytes), position = known.place, known.session.message_count
        old_labels = known.session.labels
    else:
        row = db.execute(
            "SELECT pk, message_count, end_bytes, labels, create_time FROM sessions WHERE id = ?",
            (session.id,),
        ).fetchone()
        if row is None:
            raise SessionNotFound(f"there is no session {session.id!r}")
        branch, position, end_bytes, labels, create_time = row
        old_labels = json.loads(labels)
        expected = session.message_count - len(change.appended), session.create_time
        if (position, create_time) != expected:
            # The file was replaced since the turn began: what it has is left as it is.
            raise SessionNotFound(f"the stored session {session.id!r} is another by now")
    added_bytes = sum(message.size_bytes for _, message in change.appended)
    db.execute(
        "UPDATE sessions SET id = ?, create_time = ?, last_used_time = ?,"
        " idle_timeout_seconds = ?, expire_time = ?, message_count = ?, exchange_count = ?,"
        " size_bytes = ?, end_bytes = ?, window_start = ?, context_tokens = ?,"
        " context_bytes = ?, prompt_tokens = ?, cached_tokens = ?, completion_tokens = ?,"
        " keep_exchanges = ?, max_exchanges = ?, max_tokens = ?, rendering = ?,"
        " parent_id = ?, model = ?, labels = ?, system_prompt = ? WHERE pk = ?",
        (*session_values(session, end_bytes + added_bytes), branch),
    )
    if old_labels != session.labels:
        _unlabel(db, branch, old_labels)
        _label(db, branch, session.labels)
    return branch, _append(db, branch, change, position, end_bytes)


def _append(
    db: sqlite3.Connection, branch: int, change: Commit, position: int, end_bytes: int
) -> int:
    """The branch's `end_bytes` with what is appended."""
    values: list[object] = []
    for place, (exchange, message) in enumerate(change.appended, start=position):
        end_bytes += message.size_bytes
        values += (
            branch,
            exchange,
            place,
            end_bytes,
            message.role.value,
            message.content,
            extra_of(message),
        )
    last: int | None = None
    for start in range(0, len(values), _MOST_AT_ONCE * _MESSAGE_VALUES):
        some = values[start : start + _MOST_AT_ONCE * _MESSAGE_VALUES]
        rows = ", ".join(["(NULL, ?, ?, ?, ?, ?, ?, ?)"] * (len(some) // _MESSAGE_VALUES))
        last = db.execute(f"INSERT INTO messages VALUES {rows}", some).lastrowid  # noqa: S608
    if change.idempotency_record is not None:
        _keep(db, branch, change, change.idempotency_record, last)
    return end_bytes


def _keep(
    db: sqlite3.Connection,
    branch: int,
    change: Commit,
    idempotency_record: IdempotencyRecord,
    last: int | None,
) -> None:
    figures = message = None
    if idempotency_record.finished is not None:
        if change.appended and change.appended[-1][1] == idempotency_record.finished.message:
            message = last
        figures = figures_of(idempotency_record.finished, with_message=message is None)
    if idempotency_record.request_id:
        db.execute(
            "DELETE FROM receipts WHERE session = ? AND request_id = ?",
            (branch, idempotency_record.request_id),
        )
    creates = (
        change.create
        and bool(idempotency_record.request_id)
        and not idempotency_record.completion_id
    )
    db.execute(
        "INSERT INTO receipts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            branch,
            idempotency_record.request_id,
            creates,
            idempotency_record.digest,
            idempotency_record.completion_id,
            idempotency_record.last_sequence,
            message,
            figures,
        ),
    )


def _base(
    db: sqlite3.Connection, branch: int, shared: int, exchange_count: int
) -> tuple[int, int, int]:
    """(branch, exchange, end_bytes) of the last of the `shared` first messages of `branch`.

    A child hangs on the branch that holds that message, so that chains stay as short as can be.
    """
    owner, (parent, base_position, _) = branch, reads.fork_of(db, branch)
    while parent is not None and shared <= base_position:
        owner, (parent, base_position, _) = parent, reads.fork_of(db, parent)
    row = db.execute(
        "SELECT exchange, end_bytes, position FROM messages"
        " WHERE branch = ? AND exchange <= ? AND position < ?"
        " ORDER BY exchange DESC, position DESC LIMIT 1",
        (owner, exchange_count, shared),
    ).fetchone()
    if row is None or row[2] != shared - 1:
        raise ValueError(f"the parent has no {shared} messages to share")
    return owner, row[0], row[1]


def _evict(
    db: sqlite3.Connection, session_cache: SessionCache, change: Commit
) -> list[RemovedSession]:
    if change.max_sessions is None:
        return []
    (count,) = db.execute("SELECT sessions FROM totals").fetchone()
    excess = count - change.max_sessions
    if excess <= 0:
        return []
    kept = {change.session.id, *change.protected}
    expired = _first(db.execute(_BY_EXPIRY, (change.now,)), excess, kept)
    kept.update(expired)
    evicted = _first(db.execute(_BY_USE), excess - len(expired), kept)
    for session_id in (*expired, *evicted):
        end(db, session_cache, session_id)
    return [
        *(RemovedSession(session_id, expired=True) for session_id in expired),
        *(RemovedSession(session_id, expired=False) for session_id in evicted),
    ]


def _first(rows: Iterable[tuple[str]], count: int, excluded: Collection[str]) -> list[str]:
    """Returns the first `count` ids that are not `excluded`."""
    return list(islice((each for (each,) in rows if each not in excluded), count))


def _delete(db: sqlite3.Connection, branch: int, labels: Mapping[str, str]) -> None:
    db.execute("DELETE FROM sessions WHERE pk = ?", (branch,))
    db.execute("UPDATE totals SET sessions = sessions - 1")
    db.execute("INSERT INTO garbage VALUES (?)", (branch,))
    _unlabel(db, branch, labels)


def _label(db: sqlite3.Connection, branch: int, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        db.execute("INSERT INTO labels VALUES (?, ?, ?)", (key, value, branch))


def _unlabel(db: sqlite3.Connection, branch: int, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        db.execute(
            "DELETE FROM labels WHERE key = ? AND value = ? AND session = ?", (key, value, branch)
        )
