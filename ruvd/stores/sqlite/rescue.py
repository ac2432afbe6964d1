"""The rescue copy: what the store's open connection still holds after its files were lost.

Deleted files live on while they are open, so the database is copied through the connection that
has them open, to a new file beside the lost one. Operators decide what becomes of it. Until they
have, the store does not begin anew in its place.
"""

import logging
import sqlite3
import time
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.backup import DamagedCopy, write_copy
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.leftovers import RESCUE_INFIX
from ruvd.stores.sqlite.schema import schema_version

_log = logging.getLogger("ruvd.store")

_RETRY_SECONDS = 10.0


class Rescue:
    """Writes one rescue copy of a database beside it; tries again while that fails."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._next_try = 0.0
        self._reason = ""
        self.copy: Path | None = None

    def try_once(self, db: sqlite3.Connection | None, *, is_last: bool = False) -> None:
        """Writes the copy, if it is not written yet. Blocks.

        After a failure it waits before it tries again, unless this try `is_last`.
        """
        if self.copy is not None or (time.monotonic() < self._next_try and not is_last):
            return
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._file.path
        target = path.with_name(f"{path.name}{RESCUE_INFIX}{now}")
        try:
            self._file.make_directory()
            size = _write(db, target)
        except (sqlite3.Error, OSError, DamagedCopy, StoreUnavailable) as fault:
            if str(fault) != self._reason:
                self._reason = str(fault)
                _log.error("rescue copy failed", extra={"path": str(target), "reason": str(fault)})
        else:
            self.copy = target
            _log.warning("rescue copy written", extra={"path": str(target), "size": size})
        self._next_try = time.monotonic() + _RETRY_SECONDS


def _write(db: sqlite3.Connection | None, target: Path) -> int:
    if db is None:
        raise StoreUnavailable("the database was not open when it was lost")
    db.execute("BEGIN")
    try:
        if schema_version(db, str(target)) == 0:
            raise DamagedCopy("the open file is empty")
        return write_copy(db, target)
    finally:
        db.execute("ROLLBACK")
