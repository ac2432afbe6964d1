"""The background work on a sealed store: sealing plain rows, and new operator's keys.

A plain store is sealed row by row, in steps of milliseconds on the writer's thread, while the
daemon serves. How far it has come is stored, so a restart goes on from there. The same steps open
a sealed store again (`ruvd rekey --plain`). When the operator's current key changes, the data keys
are sealed anew with it; rows stay as they are.
"""

import logging
import sqlite3
from typing import TYPE_CHECKING

from ruvd.stores.sqlite.data_keys import OPENING, SEALED, SEALING
from ruvd.stores.sqlite.row_conversion import PARTS, convert_rows

if TYPE_CHECKING:
    from ruvd.sealing.keys import KeyRing
    from ruvd.stores.sqlite.sealed_rows import SealedRows

_log = logging.getLogger("ruvd.store")

_STEP_KEYS = 200


class SealingWork:
    """The background work of one store. Its methods run on the writer's thread."""

    def __init__(self, rows: "SealedRows") -> None:
        self._rows = rows
        # The keys that all data keys are known to be sealed with.
        self._done: KeyRing | None = None
        self._rewrapped = 0
        if rows.state == SEALING:
            _log.info("sealing plain rows of the store")

    def step(self, db: sqlite3.Connection) -> bool:
        """Does a step in a transaction of its own; returns False if there was nothing to do."""
        if self._rows.state == SEALING:
            self._convert(db)
            return True
        ring = self._rows.keys.operator.ring
        if ring is self._done:
            return False
        db.execute("BEGIN IMMEDIATE")
        count = self._rows.keys.rewrap(db, _STEP_KEYS)
        db.execute("COMMIT")
        self._rewrapped += count
        if count:
            return True
        if self._rewrapped:
            _log.info(
                "data keys of the store sealed with another key",
                extra={"key": ring.current_id, "count": self._rewrapped},
            )
        self._done, self._rewrapped = ring, 0
        return False

    def open_step(self, db: sqlite3.Connection) -> bool:
        """Does a step of opening sealed rows; returns False once the store is plain."""
        db.execute("BEGIN IMMEDIATE")
        if not db.execute("SELECT 1 FROM sealing").fetchone():
            db.execute("COMMIT")
            return False
        if self._rows.state != OPENING:
            self._rows.store_state(db, OPENING)
            self._rows.state = OPENING
        if not self._convert_some(db, seal=False):
            self._rows.keys.delete_all(db)
        db.execute("COMMIT")
        return True

    def _convert(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        has_more = self._convert_some(db, seal=True)
        if not has_more:
            self._rows.store_state(db, SEALED)
        db.execute("COMMIT")
        if not has_more:
            self._rows.state = SEALED
            _log.info("the store is sealed: no plain row is left")

    def _convert_some(self, db: sqlite3.Connection, *, seal: bool) -> bool:
        """Converts some rows in the open transaction; returns False if there are none left."""
        part, position = db.execute("SELECT part, position FROM sealing").fetchone()
        last = convert_rows(db, self._rows, part, position, seal=seal)
        if last is not None:
            db.execute("UPDATE sealing SET position = ?", (last,))
        elif part != PARTS[-1]:
            following = PARTS[PARTS.index(part) + 1]
            db.execute("UPDATE sealing SET part = ?, position = 0", (following,))
        return last is not None or part != PARTS[-1]
