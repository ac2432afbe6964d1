"""The writer's work between batches: it deletes what ended sessions left, byte by byte.

Rows of deleted sessions are purged in steps. Their pages, which SQLite overwrites with zeros, are
then in the write-ahead log; older frames of the log and the database file still hold the content.
So within seconds the log is copied into the file and emptied, and the unused space of the pages
that were in it is overwritten (see `page_file`). This is the only place that does a checkpoint:
SQLite's own would let the log be overwritten before its pages are known.

On a full disk the room of the reserve serves to delete sessions, and nothing else is written until
the reserve is there again. Deleted pages are then not overwritten, which would need room in the
log, but all are returned to the file system.
"""

import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import islice

from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.page_file import logged_pages
from ruvd.stores.sqlite.purge import purge_step, return_free_pages
from ruvd.stores.sqlite.reserve import Reserve

# The time from the first deletion to the next checkpoint, which serves all deletions until then.
_ERASE_SECONDS = 2.0
# The next try after a checkpoint that another connection's read transaction has kept from ending.
_RETRY_SECONDS = 0.5
# The time that a checkpoint waits for such a transaction. Writes wait as long.
_BUSY_MILLISECONDS = 50
# There is no room: on the disk, or (EDQUOT, EFBIG) within a quota or a limit.
_DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
_FULL_STEP_ROWS = 50
_FULL_SECONDS = 1.0
# The pages that a step scrubs, which takes about 5 ms.
_STEP_PAGES = 1_000
# A longer log, which grows during a backup, is not read: all pages of the file are scrubbed.
_MAX_LOG_FRAMES = 20_000
_FIRST_PAGE = 2
# The time within which new keys of the operator are noticed.
_KEYS_SECONDS = 1.0
_MAX_FINISH_SECONDS = 5.0


class Housekeeping:
    """The work of one writer on its file. All methods run on the writer's thread.

    `disk_full` is called with the fault when the disk has become full, and with None when it has
    room again.
    """

    def __init__(
        self,
        file: DatabaseFile,
        reserve: Reserve,
        disk_full: Callable[[str | None], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._reserve = reserve
        self._disk_full = disk_full
        self._now = now
        self.is_full = False
        self._erase_at: float | None = None
        self._retry_at = 0.0
        # Pages to scrub: those of the last logs, and those from a number on.
        self._pages: set[int] = set()
        self._next_page: int | None = None

    def opened(self, db: sqlite3.Connection) -> None:
        """Plans to scrub the whole file, as nobody knows what a killed daemon has left in it."""
        self._next_page = _FIRST_PAGE
        self._plan(0.0)
        if self.is_full:
            _overwrite_free_pages(db, "FAST")
        else:
            self._reserve.take()

    def is_log_full(self) -> bool:
        """Whether the log has reached the size at which it is to be emptied, and may be now."""
        max_bytes = self._reserve.size_bytes // 2
        return self._file.log_bytes() >= max_bytes and self._now() >= self._retry_at

    def make_room(self, db: sqlite3.Connection | None, error: Exception) -> str | None:
        """Returns None unless the error says that the disk is full.

        Otherwise rolls back the transaction, makes room for one that deletes something, and returns
        a message for the operator.
        """
        if not isinstance(error, sqlite3.Error) or error.sqlite_errorcode not in _DISK_FULL:
            return None
        if db is not None:
            if db.in_transaction:
                db.execute("ROLLBACK")
            _overwrite_free_pages(db, "FAST")
        self._reserve.give_back()
        fault = f"{self._file.explain(error)}; sessions can still be read and ended"
        if not self.is_full:
            self.is_full = True
            self._disk_full(fault)
        return fault

    def step(self, db: sqlite3.Connection) -> float | None:
        """Does a step of milliseconds. Returns the seconds until the next one is due, or None."""
        try:
            return self._step_on_full_disk(db) if self.is_full else self._step(db)
        except sqlite3.Error as error:
            was_held = self._reserve.is_held
            if self.make_room(db, error) is None:
                raise
            return 0.0 if was_held else _FULL_SECONDS

    def _step_on_full_disk(self, db: sqlite3.Connection) -> float:
        has_more = purge_step(db, _FULL_STEP_ROWS) or return_free_pages(db, spare=0)
        is_erased = self._erase(db)
        if has_more:
            return 0.0
        if not is_erased or not self._reserve.take():
            return _FULL_SECONDS
        _overwrite_free_pages(db, "ON")
        self.is_full = False
        self._disk_full(None)
        return 0.0

    def _step(self, db: sqlite3.Connection) -> float | None:
        now = self._now()
        is_due = self._erase_at is not None and now >= self._erase_at
        if self.is_log_full() or (is_due and now >= self._retry_at):
            if not self._erase(db, files_are_as_left=True):
                self._retry_at = self._now() + _RETRY_SECONDS
            return 0.0
        sealing = self._file.sealing
        if purge_step(db) or return_free_pages(db) or (sealing and sealing.work(db)):
            self._plan(_ERASE_SECONDS)
            return 0.0
        if self._erase_at is None:
            return None if sealing is None else _KEYS_SECONDS
        return max(0.0, self._erase_at - now, self._retry_at - now)

    @property
    def has_work(self) -> bool:
        """Whether something that was deleted is not overwritten yet."""
        return self._erase_at is not None

    def finish(self, db: sqlite3.Connection) -> None:
        """Does all steps that are left, or those of a few seconds, before the file is closed."""
        end = self._now() + _MAX_FINISH_SECONDS
        while self._now() < end and (purge_step(db) or return_free_pages(db)):
            self._plan(0.0)
        while self._now() < end and self._erase_at is not None and self._erase(db):
            pass

    def _plan(self, seconds: float) -> None:
        if self._erase_at is None:
            self._erase_at = self._now() + seconds

    def _erase(self, db: sqlite3.Connection, *, files_are_as_left: bool = False) -> bool:
        """Empties the log and scrubs pages; returns False if another connection prevents it.

        `files_are_as_left` if this step has not changed the files yet, so they can be compared.
        """
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        logged = logged_pages(self._file.log, page_bytes, _MAX_LOG_FRAMES)
        if logged is None:
            self._next_page = _FIRST_PAGE
        else:
            self._pages |= logged
        if files_are_as_left:
            # A checkpoint hides that another program has overwritten the database.
            self._file.watch.check()
        if not _checkpoint(db) or not self._scrub(db):
            return False
        has_more = self._pages or self._next_page is not None
        self._erase_at = self._now() if has_more else None
        return True

    def _scrub(self, db: sqlite3.Connection) -> bool:
        pages = self._file.pages()
        if pages is None:
            self._pages.clear()
            self._next_page = None
            return True
        try:
            with _write_lock(db):
                # Another program may have written since the checkpoint.
                if self._file.log_bytes():
                    return False
                changed = pages.scrub(self._take_pages(pages.page_count()))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        if changed:
            # SQLite would write the pages in its cache as they were.
            db.execute("PRAGMA shrink_memory")
        return True

    def _take_pages(self, count: int) -> list[int]:
        taken = list(islice(self._pages, _STEP_PAGES))
        self._pages.difference_update(taken)
        if not self._pages and self._next_page is not None:
            first, self._next_page = self._next_page, self._next_page + _STEP_PAGES
            taken += range(first, min(self._next_page, count + 1))
            if self._next_page > count:
                self._next_page = None
        return taken


def _overwrite_free_pages(db: sqlite3.Connection, mode: str) -> None:
    """Sets whether pages are overwritten when they become free (`ON`) or only rows (`FAST`)."""
    db.execute(f"PRAGMA secure_delete = {mode}").fetchone()


def _checkpoint(db: sqlite3.Connection) -> bool:
    """Copies the log into the file and empties it; returns False if it is in use."""
    (milliseconds,) = db.execute("PRAGMA busy_timeout").fetchone()
    db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}").fetchone()
    try:
        (is_busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        db.execute(f"PRAGMA busy_timeout = {milliseconds}").fetchone()
    return not is_busy


@contextmanager
def _write_lock(db: sqlite3.Connection) -> Generator[None, None, None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
