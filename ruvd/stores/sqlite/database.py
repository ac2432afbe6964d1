"""The SQLite file: its lock, its connections, and advice to the operator about its errors.

One process at a time has the database open, by a lock file. That is never removed, or two processes
could each lock a file of its name. Only the owner can read the files. A file that cannot be used is
left as it is.
"""

import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.core.private_files import open_private
from ruvd.stores.sqlite.page_file import PageFile
from ruvd.stores.sqlite.schema import migrate, schema_version

Durability: TypeAlias = Literal["normal", "full"]

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
    sqlite3.SQLITE_CORRUPT: "it is damaged and was left as it is: restore it from a backup, or"
    " move it away to start with an empty store",
    sqlite3.SQLITE_NOTADB: "it is damaged or no database and was left as it is: restore it from a"
    " backup, or move it away to start with an empty store",
}


class DatabaseFile:
    """A database file and its lock. Methods block: they are called on the store's threads."""

    def __init__(self, path: Path, durability: Durability) -> None:
        self._path = path
        self._name = str(path)
        self._durability = durability
        self._lock: int | None = None
        self.log = Path(f"{path}-wal")
        # To close a descriptor of the file would release the locks of all connections to it.
        self._descriptors: dict[tuple[int, int], int] = {}
        self._descriptor: int | None = None

    def open_writer(self) -> sqlite3.Connection:
        """Takes the lock, creates what is missing, connects, and migrates to the newest schema.

        Raises StoreLocked, StoreUnavailable, OSError or sqlite3.Error.
        """
        _make_private_directories(self._path.parent)
        self._take_lock()
        # SQLite gives its log and shared memory the mode of the database. An existing file must
        # not be opened here: closing it would release the locks of another connection to it.
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        identity = self._open_descriptor()
        db = self._connect()
        try:
            self._check_identity(identity)
            self._set_up(db)
            # SQLite follows a symbolic link, and has its log beside the file.
            self.log = Path(f"{db.execute('PRAGMA database_list').fetchone()[2]}-wal")
        except BaseException:
            db.close()
            raise
        return db

    def open_reader(self) -> sqlite3.Connection:
        """Connects for reading only. Raises sqlite3.Error."""
        db = self._connect()
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA schema_version").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def identity(self) -> tuple[int, int] | None:
        """Returns (device, inode) of the file at the path, or None if there is none."""
        try:
            return _identity(os.stat(self._name))  # noqa: PTH116  # half of pathlib's time, at each batch
        except OSError:
            return None

    def pages(self) -> PageFile | None:
        """Returns the pages of the file that the writer has open, or None if it has none that can
        be scrubbed."""
        if self._descriptor is None:
            return None
        pages = PageFile(self._descriptor)
        return pages if pages.can_be_scrubbed else None

    def log_bytes(self) -> int:
        """Returns the size of the write-ahead log."""
        try:
            return os.stat(self.log).st_size  # noqa: PTH116  # half of pathlib's time, at each batch
        except FileNotFoundError:
            return 0

    def close_descriptors(self) -> None:
        """Closes what `pages` uses. All connections must have been closed."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def release(self) -> None:
        """Releases the lock if it is held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def explain(self, fault: sqlite3.Error | OSError) -> str:
        """Returns a message for the operator: what is wrong, and what to do about it."""
        if isinstance(fault, OSError):
            return f"{fault.filename or self._path}: {fault.strerror}: ruvd needs to write there"
        code = getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        advice = _ADVICE.get(code)
        return f"{self._path}: {advice} ({fault})" if advice else f"{self._path}: {fault}"

    def _open_descriptor(self) -> tuple[int, int] | None:
        """Opens the file for `pages`, unless that is open already, and returns its identity."""
        identity = self.identity()
        if identity is not None and identity not in self._descriptors:
            with suppress(OSError):  # SQLite reports it
                self._descriptors[identity] = os.open(self._path, os.O_RDWR)
        self._descriptor = self._descriptors.get(identity) if identity else None
        return identity

    def _check_identity(self, expected: tuple[int, int] | None) -> None:
        opened = self._descriptor is None or _identity(os.fstat(self._descriptor)) == expected
        if self.identity() != expected or not opened:
            raise StoreUnavailable(f"{self._path} was replaced while it was opened: call again")

    def _connect(self) -> sqlite3.Connection:
        # With mode=rw SQLite never creates the file, whose permissions it would choose itself.
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)

    def _set_up(self, db: sqlite3.Connection) -> None:
        # This comes first, because not even a pragma may change another program's database.
        version = schema_version(db, str(self._path))
        if version == 0:
            # This has an effect only before the first table is created.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(
                f"{self._path} is on a file system without shared memory, which its log needs:"
                " use a local disk"
            )
        db.execute("PRAGMA secure_delete = ON").fetchone()
        # `housekeeping` does the checkpoints.
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        db.execute(f"PRAGMA synchronous = {self._durability}")
        migrate(db, version)
        # Only a write proves that the file can be written.
        db.execute("UPDATE totals SET sessions = sessions")

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        path = f"{self._path}.lock"
        lock = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as held:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise StoreLocked(
                f"{self._path} is in use by another ruvd (process {holder}, by {path}): stop it,"
                " or use another file"
            ) from held
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock


def _identity(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _make_private_directories(path: Path) -> None:
    if not path.exists():
        _make_private_directories(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
