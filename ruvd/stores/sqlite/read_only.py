"""Reading a database without writing: one whose file, directory or mount is read-only.

A database without a log is opened as immutable, because SQLite would otherwise create a log and its
index beside it. With a log, which a killed daemon leaves behind, SQLite reads both as they are.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.file_watch import sqlite_file
from ruvd.stores.sqlite.schema import MIGRATIONS, schema_version


def is_read_only(path: Path) -> bool:
    """Tells whether the database can be read, but not written. Blocks."""
    files = [path, Path(f"{path}.lock"), sqlite_file(path, "-wal"), sqlite_file(path, "-shm")]
    places = [path.parent, *(file for file in files if file.exists())]
    return os.access(path, os.R_OK) and not all(os.access(place, os.W_OK) for place in places)


def read_only_mode(path: Path) -> str:
    """Returns the parameters of the URI that opens the database without writing anywhere."""
    log = sqlite_file(path, "-wal")
    return "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raises StoreUnavailable for a database that has to be migrated before it can be read."""
    version = schema_version(db, str(path))
    if version < len(MIGRATIONS):
        raise StoreUnavailable(
            f"{path} is read-only and has schema {version} of {len(MIGRATIONS)}: make it writable,"
            " so that it can be migrated"
        )


def is_newer(path: Path) -> bool:
    """Tells whether a newer ruvd wrote the file; False if it cannot be read. Changes nothing."""
    try:
        uri = f"{path.absolute().as_uri()}?{read_only_mode(path)}"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
    except (sqlite3.Error, OSError):
        return False
    return int(version) > len(MIGRATIONS)
