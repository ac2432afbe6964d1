"""The two ways in which the threads of the store have the database open: to write, and to read.

A worker calls `check` before each batch, and after `interval_seconds` without one, and `committed`
after a batch; idle work is done by `work`. All of them raise FilesLost once the files are not as
they were left. The connection then stays open for `rescue`, which is called again and again.
Otherwise it is closed after an error, and after each batch unless it `keeps_open`.
"""

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.file_watch import sqlite_file
from ruvd.stores.sqlite.rescue import Rescue

_T = TypeVar("_T")


class WriterAccess:
    """The access of the one thread that writes. `connect` opens the database for it.

    It watches the files, and writes a rescue copy once they are lost.
    """

    interval_seconds: float | None = 0.25
    keeps_open = True

    def __init__(
        self,
        file: DatabaseFile,
        connect: Callable[[], sqlite3.Connection],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._file = file
        self._has_room = has_room
        self._watch = file.watch
        self._rescue = Rescue(file)
        self._connect = connect
        self.check = self._watch.check
        self.committed = self._watch.committed
        self.rescue = self._rescue.try_once
        self.explain = file.explain

    def connect(self) -> sqlite3.Connection:
        """Opens the database."""
        db = self._connect()
        self._watch.opened()
        return db

    def work(
        self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T], *, is_step: bool
    ) -> _T:
        """Does work that may checkpoint.

        A step of it either does so or changes content, unless the disk is full.
        """
        size = None
        if is_step and self._has_room():
            (pages,), (page_bytes,) = (
                db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
            )
            size = pages * page_bytes
        result = work(db)
        self._watch.worked(size if self._has_room() else None)
        return result

    def close(self, db: sqlite3.Connection) -> None:
        """Closes the connection. Deletes a log that would be applied to another database.

        If the files were lost just before, this is the last time that they can be rescued.
        """
        if self._watch.lost is not None:
            self._rescue.try_once(db, is_last=True)
        replaced = not self._watch.database_is_ours()
        stale_log = self._rescue.copy is not None and replaced and self._watch.log_is_ours()
        self._file.close_writer(db)
        if stale_log:
            for suffix in ("-wal", "-shm"):
                sqlite_file(self._file.path, suffix).unlink(missing_ok=True)


class ReaderAccess:
    """The access of the thread that reads. `connect` opens the database for it.

    It changes no file. It also reads a database that cannot be written, until it can.
    """

    interval_seconds: float | None = None
    keeps_open = True

    def __init__(self, file: DatabaseFile, connect: Callable[[], sqlite3.Connection]) -> None:
        self._file = file
        self._connect = connect
        self.check = file.watch.check_database
        self.explain = file.explain

    def connect(self) -> sqlite3.Connection:
        """Opens the database, for one batch alone if it cannot be written.

        The view of such a connection does not follow changes, and it can keep SQLite in this
        process from writing.
        """
        self.keeps_open = self._file.is_open
        return self._connect()

    def committed(self) -> None:
        """Does nothing: reading changes no file."""

    def work(
        self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T], *, is_step: bool
    ) -> _T:
        """Does the work, which changes no file."""
        return work(db)

    def rescue(self, db: sqlite3.Connection | None) -> None:
        """Does nothing: the thread that writes rescues what is open."""

    def close(self, db: sqlite3.Connection) -> None:
        """Closes the connection."""
        db.close()
