"""A copy of a live SQLite store, taken while a daemon writes to it.

The source is opened read-only and without the daemon's lock. One read transaction spans the whole
copy: it is the store of one instant, and no commit makes the copying start again, as it would
between the steps of a backup without one. The daemon's log grows meanwhile and is not held up. The
copy is one file without a log of its own. It gets its name when it is complete, sound and on disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.schema import version_of

# A step holds the interpreter's lock: 4 MiB in pages of 4 KiB.
_PAGES_A_STEP = 1024
_BUSY_SECONDS = 5.0


def back_up(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Copy the store in `source` to `target`, mode 0600; its size in bytes. Blocks.

    `progress` gets the pages done and the pages in all. Raises FileExistsError for a target that
    exists, unless `overwrite`, and for one that is in use; StoreUnavailable for a source that is
    no store or cannot be read, and for a copy that turns out damaged; otherwise OSError. Where it
    raises, the target is as it was.
    """
    if not source.is_file():
        raise StoreUnavailable(f"there is no store at {source}")
    _check_target(source, target, overwrite=overwrite)
    part = target.with_name(f"{target.name}.part")
    _remove(part)
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            _copy(source, part, progress)
        except sqlite3.Error as fault:
            full = getattr(fault, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
            about = DatabaseFile(target if full else source, "normal")
            raise StoreUnavailable(about.explain(fault)) from fault
        _flush(part)
        size = part.stat().st_size
        part.replace(target)
    finally:
        _remove(part)
    _flush(target.parent)
    return size


def _copy(source: Path, part: Path, progress: Callable[[int, int], None]) -> None:
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as db,
        closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        db.execute("BEGIN")
        if version_of(db, str(source)) == 0:
            raise StoreUnavailable(f"{source} is empty: there is nothing to back up")
        # The file is flushed as a whole, once.
        copy.execute("PRAGMA synchronous = OFF")
        db.backup(
            copy,
            pages=_PAGES_A_STEP,
            progress=lambda _, remaining, total: progress(total - remaining, total),
        )
        # No log beside it: the copy can be moved about, and read from a medium that is read-only.
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreUnavailable(
                f"the copy of {source} is damaged and was not kept ({verdict}): the store itself"
                " may be"
            )


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{target} is the store itself")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists")
    # SQLite would take a log that lies there for the copy's own.
    for suffix in ("-wal", "-journal"):
        if Path(f"{target}{suffix}").exists():
            raise FileExistsError(f"{target}{suffix} exists: {target} is in use, or was not closed")


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{part}{suffix}").unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
