"""A backup of a live SQLite store, taken while a daemon writes to it.

The source is opened read-only and without the daemon's lock. One read transaction lasts for the
whole copy: the copy is the store at one instant, and no commit restarts it, as happens between the
steps of a backup without such a transaction. Meanwhile the daemon writes on, and its log grows. The
copy is a single file without a log, made in a directory of its own, FILE.part, that only this user
can enter. It gets its name once it is complete, checked and on disk.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.core.private_files import open_private
from ruvd.stores.sqlite.database import DatabaseFile, connect_read_only
from ruvd.stores.sqlite.schema import SEALED_SCHEMA, schema_version
from ruvd.stores.sqlite.sealing import key_ids

# A step, which holds the interpreter's lock, copies 4 MiB in pages of 4 KiB.
_STEP_PAGES = 1024
_BUSY_SECONDS = 5.0


class DamagedCopy(Exception):
    """The copy of a database is damaged, because the database is."""


def back_up(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Copies the store in `source` to `target`, with mode 0600, and returns the size in bytes.

    Blocks. `progress` is called with the number of copied pages and of all pages. Raises
    FileExistsError if the target exists (unless `overwrite`) or is in use; StoreUnavailable if the
    source is not a store or cannot be read, or if the copy is damaged; otherwise OSError. If it
    raises, the target is unchanged.
    """
    if not source.is_file():
        raise StoreUnavailable(f"there is no store at {source}")
    _check_target(source, target, overwrite=overwrite)
    try:
        with closing(connect_read_only(source, _BUSY_SECONDS)) as db:
            db.execute("BEGIN")
            if schema_version(db, str(source)) == 0:
                raise StoreUnavailable(f"{source} is empty: there is nothing to back up")
            return write_copy(db, target, progress)
    except DamagedCopy as damage:
        raise StoreUnavailable(
            f"the copy of {source} is damaged and was not kept ({damage}): the store itself may be"
        ) from damage
    except sqlite3.Error as fault:
        full = getattr(fault, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        about = DatabaseFile(target if full else source, "normal")
        raise StoreUnavailable(about.explain(fault)) from fault


def needed_keys(copy: Path) -> list[str]:
    """Returns the ids of the keys that a copy is encrypted with, none for a plain one."""
    with closing(sqlite3.connect(copy)) as db:
        if schema_version(db, str(copy)) < SEALED_SCHEMA:
            return []
        return key_ids(db)


def write_copy(
    db: sqlite3.Connection,
    target: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Copies an open database, in a read transaction, to a file and returns the size in bytes.

    The file, of mode 0600, gets its name once it is complete, checked and on disk. Raises
    sqlite3.Error, OSError or DamagedCopy, and then leaves nothing behind.
    """
    # SQLite opens the copy and its journal by name, so they are made where no other user can put
    # anything in place of them.
    room = target.with_name(f"{target.name}.part")
    part = room / target.name
    _remove(room)
    try:
        room.mkdir(mode=0o700)
        os.close(open_private(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            # The whole file is flushed once, after the copy.
            copy.execute("PRAGMA synchronous = OFF")
            db.backup(
                copy,
                pages=_STEP_PAGES,
                progress=lambda _, remaining, total: progress(total - remaining, total),
            )
            # Without a log, the copy can be moved, and read from a read-only medium.
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise DamagedCopy(verdict)
        _flush(part)
        size = part.stat().st_size
        part.replace(target)
    finally:
        _remove(room)
    _flush(target.parent)
    return size


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{target} is the store itself")
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(f"{target} exists")
    # SQLite would take a log that is already there for the copy's log.
    for suffix in ("-wal", "-journal"):
        if Path(f"{target}{suffix}").exists():
            raise FileExistsError(f"{target}{suffix} exists: {target} is in use, or was not closed")


def _remove(room: Path) -> None:
    """Deletes the directory of a copy, and the files that a killed earlier version left instead."""
    if room.is_dir() and not room.is_symlink():
        shutil.rmtree(room)
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{room}{suffix}").unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
