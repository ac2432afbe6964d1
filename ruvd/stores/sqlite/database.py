"""The SQLite file: its lock, its connections, and advice to the operator about its errors.

One process at a time has the database open, by a lock file. That is never removed, or two processes
could each lock a file of its name. Only the owner can read the files. A file that cannot be used is
left as it is.
"""

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.stores.sqlite.checksums import lenient_text
from ruvd.stores.sqlite.file_watch import FileWatch
from ruvd.stores.sqlite.leftovers import check_leftovers
from ruvd.stores.sqlite.lock import take_lock
from ruvd.stores.sqlite.page_file import PageFile
from ruvd.stores.sqlite.read_only import check_schema, is_read_only, read_only_mode
from ruvd.stores.sqlite.schema import MIGRATIONS, migrate, schema_version
from ruvd.stores.sqlite.sealing import RowSealing, SealableConnection, attach

Durability: TypeAlias = Literal["normal", "full"]

# Older versions can corrupt a database when a savepoint is rolled back (from 3.35.0 on), see
# https://sqlite.org/releaselog/3_37_2.html, or lack what the store uses. The corruption of versions
# before 3.51.3 (https://sqlite.org/wal.html#walresetbug) needs two connections that write or
# checkpoint; here one does.
MIN_SQLITE = (3, 37, 2)

# The time that a statement waits for a lock of another program on the database.
_BUSY_SECONDS = 1.0

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_READONLY: "it is read-only: make the file and its directory writable",
    sqlite3.SQLITE_PERM: "access is denied: make the file and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that it is a file that ruvd may write",
    sqlite3.SQLITE_IOERR: "reading or writing failed: check the disk and the system log",
    sqlite3.SQLITE_BUSY: "another program holds a lock on it: close that program",
    sqlite3.SQLITE_LOCKED: "another program holds a lock on it: close that program",
    sqlite3.SQLITE_CORRUPT: "it is damaged and was left as it is: stop ruvd and restore it from a"
    " backup, or move it away to start with an empty store",
    sqlite3.SQLITE_NOTADB: "it is damaged or no database and was left as it is: stop ruvd and"
    " restore it from a backup, or move it away to start with an empty store",
}


class DatabaseFile:
    """A database file and its lock. Methods block: they are called on the store's threads.

    `sealing` encrypts the content of rows, None leaves it plain.
    """

    def __init__(
        self, path: Path, durability: Durability, sealing: RowSealing | None = None
    ) -> None:
        self.path = path
        self.sealing = sealing
        self.watch = FileWatch(path)
        self._durability = durability
        self._lock: int | None = None
        self.log = Path(f"{path}-wal")
        # To close a descriptor of the file would release the locks of all connections to it.
        self._descriptors: dict[tuple[int, int], int] = {}
        self._descriptor: int | None = None
        self._companion: sqlite3.Connection | None = None
        # Set if the last `open_writer` failed because the database can be read only.
        self.is_read_only = False

    def open_writer(self) -> sqlite3.Connection:
        """Takes the lock, creates what is missing, connects, and migrates to the newest schema.

        Raises StoreLocked, StoreUnavailable, OSError or sqlite3.Error.
        """
        try:
            with _readable_errors(self.path):
                db = self._open_writer()
        except BaseException as error:
            is_denied = isinstance(error, (OSError, sqlite3.Error))
            self.is_read_only = is_denied and is_read_only(self.path)
            raise
        self.is_read_only = False
        return db

    def _open_writer(self) -> sqlite3.Connection:
        _check_version()
        self.make_directory()
        self._take_lock()
        if not self.watch.has_begun:
            check_leftovers(self.path)
        # SQLite gives its log and shared memory the mode of the database. An existing file must
        # not be opened here: closing it would release the locks of another connection to it.
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        elif not os.access(self.path, os.W_OK):
            # SQLite would open it for reading, and leave a log behind that cannot be written.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        identity = self._open_descriptor()
        # With mode=rw SQLite never creates the file, whose permissions it would choose itself.
        db = _connect(self.path, "mode=rw", _BUSY_SECONDS)
        try:
            self._check_identity(identity)
            self._set_up(db)
            # SQLite follows a symbolic link, and has its log beside the file.
            self.log = Path(f"{db.execute('PRAGMA database_list').fetchone()[2]}-wal")
            self._companion = connect_read_only(self.path, _BUSY_SECONDS)
            self._companion.execute("PRAGMA schema_version").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def open_reader(self) -> sqlite3.Connection:
        """Connects for reading only, also where nothing can be written.

        Raises sqlite3.Error, and StoreUnavailable for a schema that would have to be migrated.
        """
        mode = "mode=ro" if self.is_open else read_only_mode(self.path)
        db = connect_read_only(self.path, _BUSY_SECONDS, mode)
        try:
            with _readable_errors(self.path):
                check_schema(db, self.path)
                attach(db, self.sealing, may_write=False)
        except BaseException:
            db.close()
            raise
        return db

    def pages(self) -> PageFile | None:
        """Returns the pages of the file that the writer has open, or None if it has none that can
        be scrubbed."""
        if self._descriptor is None:
            return None
        pages = PageFile(self._descriptor)
        return pages if pages.can_be_scrubbed else None

    def log_bytes(self) -> int:
        """Returns the size of the write-ahead log, 0 if it is unknown: `watch` reports that."""
        try:
            return os.stat(self.log).st_size  # noqa: PTH116  # half of pathlib's time, at each batch
        except OSError:
            return 0

    def close_descriptors(self) -> None:
        """Closes what `pages` uses. All connections must have been closed."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def close_writer(self, db: sqlite3.Connection) -> None:
        """Closes what `open_writer` opened.

        The last connection copies the log into the database and deletes it by its name. It must
        not do so if the database at the path is another one by now, so then a companion that can
        only read closes last.
        """
        companion, self._companion = self._companion, None
        connections = [companion, db] if self.watch.database_is_ours() else [db, companion]
        for connection in connections:
            if connection is not None:
                connection.close()
        self.watch.disconnected()

    @property
    def is_open(self) -> bool:
        """Tells whether the database is open for writing."""
        return self._companion is not None

    def make_directory(self) -> None:
        """Creates the directory of the database if it is missing, for the owner alone."""
        _make_private_directories(self.path.parent)

    def release(self) -> None:
        """Releases the lock if it is held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def explain(self, fault: sqlite3.Error | OSError) -> str:
        """Returns a message for the operator: what is wrong, and what to do about it."""
        reads = "; sessions can still be read" if self.is_read_only else ""
        if isinstance(fault, OSError):
            place = fault.filename or self.path
            return f"{place}: {fault.strerror}: ruvd needs to write there{reads}"
        code = getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        advice = _ADVICE.get(code)
        return f"{self.path}: {advice} ({fault}){reads}" if advice else f"{self.path}: {fault}"

    def _open_descriptor(self) -> tuple[int, int] | None:
        """Opens the file for `pages`, unless that is open already, and returns its identity."""
        identity = self._identity()
        if identity is not None and identity not in self._descriptors:
            with suppress(OSError):  # SQLite reports it
                self._descriptors[identity] = os.open(self.path, os.O_RDWR)
        self._descriptor = self._descriptors.get(identity) if identity else None
        return identity

    def _identity(self) -> tuple[int, int] | None:
        try:
            return _identity(self.path.stat())
        except OSError:
            return None

    def _check_identity(self, expected: tuple[int, int] | None) -> None:
        opened = self._descriptor is None or _identity(os.fstat(self._descriptor)) == expected
        if self._identity() != expected or not opened:
            raise StoreUnavailable(f"{self.path} was replaced while it was opened: call again")

    def _set_up(self, db: sqlite3.Connection) -> None:
        # This comes first, because not even a pragma may change another program's database.
        version = schema_version(db, str(self.path))
        if version < len(MIGRATIONS) and self.watch.has_begun:
            self.watch.lose(f"{self.path} was emptied or replaced")
        if version == 0:
            # This has an effect only before the first table is created.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(
                f"{self.path} is on a file system without shared memory, which its log needs:"
                " use a local disk"
            )
        db.execute("PRAGMA secure_delete = ON").fetchone()
        # `housekeeping` does the checkpoints.
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        db.execute(f"PRAGMA synchronous = {self._durability}")
        migrate(db, version)
        # Only a write proves that the file can be written.
        db.execute("UPDATE totals SET sessions = sessions")
        attach(db, self.sealing, may_write=True)

    def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = take_lock(self.path)


@contextmanager
def _readable_errors(path: Path) -> Generator[None, None, None]:
    """Replaces the error for a message of SQLite's that names damaged text of the schema."""
    try:
        yield
    except UnicodeDecodeError as error:
        advice = _ADVICE[sqlite3.SQLITE_CORRUPT]
        raise StoreUnavailable(f"{path}: {advice} (malformed database schema)") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _check_version() -> None:
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        needed = ".".join(map(str, MIN_SQLITE))
        raise StoreLocked(
            f"the store needs SQLite {needed} or newer, and this Python has"
            f" {sqlite3.sqlite_version}: use another Python, or the memory store"
        )


def connect_read_only(path: Path, busy_seconds: float, mode: str = "mode=ro") -> sqlite3.Connection:
    """Connects so that SQLite can neither write nor checkpoint, not even when it closes last."""
    db = _connect(path, mode, busy_seconds)
    db.execute("PRAGMA query_only = ON")
    db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
    return db


def _connect(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{mode}"
    db = sqlite3.connect(
        uri, uri=True, timeout=busy_seconds, isolation_level=None, factory=SealableConnection
    )
    db.text_factory = lenient_text
    return db


def _make_private_directories(path: Path) -> None:
    if not path.exists():
        _make_private_directories(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
