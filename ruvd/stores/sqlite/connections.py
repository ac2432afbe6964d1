"""The connections of the SQLite store. With the first one, the clock goes on from its reading."""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.clock import StoredClock
from ruvd.stores.sqlite.access import ReaderAccess, WriterAccess
from ruvd.stores.sqlite.clock import read_clock, resume_clock
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.housekeeping import Housekeeping
from ruvd.stores.sqlite.reserve import Reserve

_MAX_CLOCK_CHANGE_SECONDS = 1.0


class Connections:
    """Opens the connections of the store's two threads.

    While `is_opening`, nothing but the opening has been asked of the store.
    """

    def __init__(self, path: Path, file: DatabaseFile, clock: StoredClock) -> None:
        self.is_opening = True
        self._path = path
        self._file = file
        self._clock = clock
        # Whether the clock goes on from the reading in the file.
        self._has_clock = False

    def housekeeping(self, report_disk: Callable[[str | None], None]) -> Housekeeping:
        """Returns the writer's work between its batches."""
        return Housekeeping(self._file, Reserve(self._path), report_disk)

    def writer(self, housekeeping: Housekeeping) -> WriterAccess:
        """Returns the access for writing. On a full disk it is opened after making room."""
        return WriterAccess(
            self._file,
            partial(self._open_writer, housekeeping),
            lambda: not housekeeping.is_full,
        )

    def reader(self) -> ReaderAccess:
        """Returns the access for reading."""
        return ReaderAccess(self._file, self._open_reader)

    def _open_writer(self, housekeeping: Housekeeping) -> sqlite3.Connection:
        try:
            return self._open_writer_once(housekeeping)
        except sqlite3.Error as error:
            if housekeeping.make_room(None, error) is None:
                raise
            return self._open_writer_once(housekeeping)

    def _open_reader(self) -> sqlite3.Connection:
        db = self._file.open_reader()
        try:
            if not self._has_clock:
                self._resume_clock(partial(read_clock, db))
        except BaseException:
            db.close()
            raise
        return db

    def _open_writer_once(self, housekeeping: Housekeeping) -> sqlite3.Connection:
        db = self._file.open_writer()
        try:
            self._resume_clock(partial(resume_clock, db))
            housekeeping.opened(db)
        except BaseException:
            self._file.close_writer(db)
            raise
        return db

    def _resume_clock(self, resume: Callable[[StoredClock], None]) -> None:
        before = self._clock.now()
        resume(self._clock)
        self._has_clock = True
        if not self.is_opening and abs(self._clock.now() - before) > _MAX_CLOCK_CHANGE_SECONDS:
            # The waiting calls bring times of the clock before it went on from another reading.
            raise StoreUnavailable(f"{self._path} was opened with another time: call again")
