"""The sealing of a store with other keys, or its opening, while no daemon has it open.

A daemon that runs does the first by itself, so then this only says how much is left to do.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.core.values import value
from ruvd.sealing.keys import OperatorKeys
from ruvd.stores.sqlite.access import WriterAccess
from ruvd.stores.sqlite.data_keys import SEALED
from ruvd.stores.sqlite.database import DatabaseFile, connect_read_only
from ruvd.stores.sqlite.housekeeping import Housekeeping
from ruvd.stores.sqlite.purge import purge_step
from ruvd.stores.sqlite.reserve import Reserve
from ruvd.stores.sqlite.row_conversion import PARTS
from ruvd.stores.sqlite.sealed_rows import SealedRows

_BUSY_SECONDS = 5.0


@value(frozen=True, slots=True)
class Left:
    """The work that is left: plain rows (an upper limit), and data keys under other keys."""

    rows: int
    keys: int

    @property
    def count(self) -> int:
        """All of it, 0 if nothing is left."""
        return self.rows + self.keys


def rekey(path: Path, keys: OperatorKeys, progress: Callable[[Left], None]) -> None:
    """Seals all rows and all data keys of a store with the current key. Blocks.

    It may be interrupted, and goes on from there when it is called again. Raises StoreLocked if a
    daemon has the store open, StoreSealed, StoreUnavailable or OSError.
    """
    rows = SealedRows(keys)

    def work(db: sqlite3.Connection) -> bool:
        progress(left_to_do(db, keys.ring.current_id))
        return rows.work(db)

    _run(path, rows, work)


def make_plain(path: Path, keys: OperatorKeys, progress: Callable[[Left], None]) -> None:
    """Opens all rows of a store, so that it needs no keys; otherwise as `rekey`."""
    rows = SealedRows(keys)

    def work(db: sqlite3.Connection) -> bool:
        if purge_step(db):  # rows of ended sessions have no data key any more
            return True
        progress(left_to_do(db, keys.ring.current_id))
        return rows.open_step(db)

    _run(path, rows, work)


def read_left_to_do(path: Path, key_id: str) -> Left | None:
    """Returns the work that is left in a store that a daemon may have open, None if it is plain.

    Raises StoreUnavailable if it cannot be read.
    """
    try:
        with closing(connect_read_only(path, _BUSY_SECONDS)) as db:
            if not db.execute("SELECT 1 FROM sealing").fetchone():
                return None
            return left_to_do(db, key_id)
    except sqlite3.Error as fault:
        raise StoreUnavailable(DatabaseFile(path, "normal").explain(fault)) from fault


def left_to_do(db: sqlite3.Connection, key_id: str) -> Left:
    """Returns the work that is left in a store, nothing for a plain one."""
    found = db.execute("SELECT state, part, position, key_id FROM sealing").fetchone()
    if found is None:
        return Left(0, 0)
    state, part, position, store_key = found
    rows = 0
    if state != SEALED:
        for each in PARTS[PARTS.index(part) :]:
            (last,) = db.execute(f"SELECT COALESCE(MAX(pk), 0) FROM {each}").fetchone()  # noqa: S608
            rows += max(0, last - (position if each == part else 0))
        rows += 1  # the change of the state
    (keys,) = db.execute(
        "SELECT COUNT(*) FROM data_keys WHERE key_id < ?1 OR key_id > ?1", (key_id,)
    ).fetchone()
    return Left(rows, keys + (store_key != key_id))


def _run(path: Path, rows: SealedRows, work: Callable[[sqlite3.Connection], bool]) -> None:
    if not path.is_file():
        raise StoreUnavailable(f"there is no store at {path}")
    file = DatabaseFile(path, "full", rows)
    access = WriterAccess(file, file.open_writer)
    try:
        db = access.connect()
        try:
            housekeeping = Housekeeping(file, Reserve(path))
            housekeeping.opened(db)
            while work(db):
                pass
            # The content that was plain until now is overwritten wherever it has been.
            while housekeeping.has_work:
                housekeeping.finish(db)
        finally:
            access.work(db, lambda _: None, is_step=False)
            access.close(db)
    except sqlite3.Error as fault:
        raise StoreUnavailable(file.explain(fault)) from fault
    finally:
        file.close_descriptors()
        file.release()
