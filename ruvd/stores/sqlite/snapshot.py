"""The content of a SQLite store at one instant, as another store takes it.

It is read from a copy, so that nothing is written to the store, which a daemon may have open.
"""

import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.migration import SharedPart, StoredRecord, StoredSession, Tombstone
from ruvd.core.ports.store import Gone, StoreCounts
from ruvd.stores.sqlite import history, reads
from ruvd.stores.sqlite.backup import back_up
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.lock import take_lock
from ruvd.stores.sqlite.rows import damaged, to_record, to_session
from ruvd.stores.sqlite.sealing import RowSealing, opener_of

_RECORDS = (
    "SELECT r.*, m.branch, m.exchange, m.position, m.role, m.content, m.extra, m.checksum"
    " FROM receipts r LEFT JOIN messages m ON m.pk = r.message WHERE r.session = ? ORDER BY r.pk"
)
_POSITION = 12
_PAGE_ROWS = 500


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Keeps daemons from opening the store while the context lasts.

    Raises StoreLocked if one has it open.
    """
    lock = take_lock(path)
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def snapshot(
    path: Path,
    *,
    directory: Path,
    sealing: RowSealing | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generator["Snapshot", None, None]:
    """Copies a store into a temporary directory in `directory`, and opens the copy.

    Blocks. `progress` is called with the number of copied pages and of all pages. Raises
    StoreUnavailable, StoreSealed or OSError.
    """
    with TemporaryDirectory(prefix=f".{path.name}-migration-", dir=directory) as room:
        copy = Path(room) / "copy.db"
        back_up(path, copy, progress=progress)
        file = DatabaseFile(copy, "normal", sealing)
        try:
            db = file.open_writer()
            try:
                yield Snapshot(db)
            finally:
                with suppress(sqlite3.Error):  # the copy is deleted
                    file.close_writer(db)
        except sqlite3.Error as fault:
            raise StoreUnavailable(file.explain(fault)) from fault
        finally:
            file.close_descriptors()
            file.release()


class Snapshot:
    """The sessions of a store at one instant.

    Times are those of the wall clock, from which the store's clock differs if the wall clock was
    set. Steps of less than half a second are left out.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        row = db.execute("SELECT wall_shift FROM clock").fetchone()
        self._shift = float(round(row[0])) if row else 0.0

    def counts(self) -> StoreCounts:
        """Returns how much there is."""
        return reads.counts(self._db, 0.0, (), None)

    def ids(self) -> Iterator[str]:
        """Yields the ids of all sessions, expired ones included, in the order of creation."""
        last = 0
        while True:
            rows = self._db.execute(
                "SELECT pk, id FROM sessions WHERE pk > ? ORDER BY pk LIMIT ?", (last, _PAGE_ROWS)
            ).fetchall()
            if not rows:
                return
            yield from (session_id for _, session_id in rows)
            last = rows[-1][0]

    def session(self, session_id: str) -> StoredSession:
        """Returns all of a session. Raises DataCorrupted."""
        return reads.of_session(session_id, lambda db: self._session(db, session_id))(self._db)

    def shared_part(self, session_id: str) -> SharedPart | None:
        """Returns what a fork shares with a session that is still there, or None."""
        branch = history.branch_of(self._db, session_id)
        if branch is None:
            return None
        parent, messages, last_exchange = history.fork_of(self._db, branch)
        row = self._db.execute("SELECT id FROM sessions WHERE pk = ?", (parent,)).fetchone()
        return SharedPart(row[0], messages, last_exchange) if row else None

    def tombstones(self) -> list[Tombstone]:
        """Returns the tombstones, the oldest ones first. Their number is limited."""
        rows = self._db.execute("SELECT id, reason, time FROM tombstones ORDER BY pk")
        return [Tombstone(row[0], Gone(row[1]), row[2] + self._shift) for row in rows]

    def _session(self, db: sqlite3.Connection, session_id: str) -> StoredSession:
        row = db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
        opener = opener_of(db)
        session = to_session(row, opener)
        exchanges = history.exchanges(db, session_id, 0)
        if len(exchanges) != session.exchange_count:
            raise damaged(session_id, "its exchanges are not as many as its record says")
        records = [
            StoredRecord(
                to_record(session_id, found[1:10], found[10:], opener),
                bool(found[3]),
                found[_POSITION],
            )
            for found in db.execute(_RECORDS, (row[0],)).fetchall()
        ]
        return StoredSession(
            replace(
                session,
                create_time=session.create_time + self._shift,
                last_used_time=session.last_used_time + self._shift,
            ),
            exchanges,
            records,
        )
