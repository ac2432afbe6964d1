"""Checks of the files beside the database that an earlier loss or a restore has left there."""

import logging
from pathlib import Path

from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.file_watch import sqlite_file

_log = logging.getLogger("ruvd.store")

# The name of a rescue copy is that of the database, this, and the time.
RESCUE_INFIX = ".rescue-"


def rescue_copies(path: Path) -> list[Path]:
    """Returns the rescue copies of the database at the path, the newest first."""
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    copies = [each for each in names if each.startswith(f"{path.name}{RESCUE_INFIX}")]
    return [path.with_name(each) for each in sorted(copies, reverse=True) if each[-1] == "Z"]


def check_leftovers(path: Path) -> None:
    """Raises StoreUnavailable for an empty store beside a rescue copy, and for a foreign log.

    Blocks, and must not be called while this process has the database open.
    """
    copies = rescue_copies(path)
    is_empty = not path.exists() or not path.stat().st_size
    if copies and is_empty:
        raise StoreUnavailable(
            f"{path} is missing or empty, but there is a rescue copy of it: rename {copies[0]} to"
            f" {path.name} to go on with it, or move it away to begin with an empty store"
        )
    log = sqlite_file(path, "-wal")
    if not is_empty and _is_without_log(path) and log.exists() and log.stat().st_size:
        raise StoreUnavailable(
            f"{log} belongs to another database than {path}, which is a copy that was put in its"
            f" place: move {log.name} away"
        )
    if copies:
        _log.warning("rescue copy found", extra={"path": str(copies[0])})


def _is_without_log(path: Path) -> bool:
    """Tells whether the header says that the database has no log, as that of every copy does.

    See https://www.sqlite.org/fileformat.html#file_format_version_numbers.
    """
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x01\x01"
