"""The watch over the open files of the store, so that their loss is noticed and never covered up.

SQLite goes on with files that were deleted or replaced under it, and its commits then go nowhere.
So before each batch of writes, after each commit, and four times a second, the files at the paths
are compared with those that are open. Only the writer's connection changes the database and its
log. Any other change of them, even by a well-behaved program, counts as a loss, because the store
has no part in it: its cache, its checkpoints and its commits would contradict the file.
"""

import logging
import os
import time
from pathlib import Path
from typing import NoReturn

from ruvd.core.values import value

_log = logging.getLogger("ruvd.store")

# The files that hold content: the database and its log.
_CONTENT = ("", "-wal")
# The index of the log, which is written through memory, and the lock against other processes. They
# matter when somebody opens the database anew, so they are not compared at each batch.
_COMPANIONS = ("-shm", ".lock")
_WATCH_SECONDS = 0.25


class FilesLost(Exception):
    """A file of the store is not the one that is open, or was changed by somebody else."""


@value(frozen=True, slots=True)
class _File:
    """A file as the store left it. Size and time of change are unset if they may change."""

    identity: tuple[int, int]
    size: int | None = None
    mtime_ns: int | None = None

    def change_to(self, found: os.stat_result) -> str | None:
        """Says what became of the file, or returns None if it is as it was."""
        if (found.st_dev, found.st_ino) != self.identity:
            return "was replaced by another file"
        if self.size is None:
            return None
        if found.st_size < self.size:
            return f"was truncated from {self.size} to {found.st_size} bytes"
        if found.st_size != self.size or found.st_mtime_ns != self.mtime_ns:
            return "was changed by another program"
        return None


def sqlite_file(path: Path, suffix: str) -> Path:
    """Returns the path of a file that SQLite keeps beside a database, behind symbolic links."""
    return Path(f"{os.path.realpath(path)}{suffix}")


def _state(found: os.stat_result, *, has_content: bool = True) -> _File:
    identity = (found.st_dev, found.st_ino)
    return _File(identity, found.st_size, found.st_mtime_ns) if has_content else _File(identity)


class FileWatch:
    """The watch over the files of one database. Methods block, for a few microseconds.

    Once a file was lost, `lost` says which and how, and stays set. All methods are called by the
    thread that writes, except for `check_database`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_complete_check = 0.0
        # The paths of the files and their states, by the suffixes.
        self._names: dict[str, str] = {}
        self._files: dict[str, _File] = {}
        self.lost: str | None = None

    @property
    def has_begun(self) -> bool:
        """Tells whether the store had the files open before."""
        return bool(self._files)

    def check(self) -> None:
        """Raises FilesLost if a file is not as it was left."""
        self._check_lost()
        now = time.monotonic()
        suffixes: tuple[str, ...] = _CONTENT
        if now >= self._next_complete_check:
            self._next_complete_check = now + _WATCH_SECONDS
            suffixes = (*_CONTENT, *_COMPANIONS)
        for suffix in suffixes:
            known = self._files.get(suffix)
            if known is not None:
                self._compare(suffix, known)

    def check_database(self) -> None:
        """Raises FilesLost if the database at the path is not the one that is open."""
        self._check_lost()
        known = self._files.get("")
        if known is not None:
            self._compare("", _File(known.identity))

    def opened(self) -> None:
        """Takes the files as they are: the connection is new."""
        if not self._names:
            # SQLite follows a symbolic link to the database, and has its log beside the file.
            beside = {suffix: str(sqlite_file(self._path, suffix)) for suffix in ("-wal", "-shm")}
            self._names = {"": str(self._path), ".lock": f"{self._path}.lock", **beside}
        for suffix in (*_CONTENT, *_COMPANIONS):
            known = self._files.get(suffix)
            found = self._compare(suffix, known and _File(known.identity))
            self._files[suffix] = _state(found, has_content=suffix in _CONTENT)

    def committed(self) -> None:
        """Takes the log as it is after commits, which leave the database as it was.

        Raises FilesLost if a file was changed otherwise.
        """
        self._compare("", self._files[""])
        log = self._files["-wal"]
        found = self._compare("-wal", _File(log.identity))
        if found.st_size < (log.size or 0):
            self._compare("-wal", log)
        self._files["-wal"] = _state(found)

    def worked(self, database_bytes: int | None) -> None:
        """Takes the files as they are after a checkpoint, which may have changed both.

        The database must have that size if its log is empty. Raises FilesLost if it has not, or if
        a file is another one.
        """
        found = [self._compare(name, _File(self._files[name].identity)) for name in _CONTENT]
        database, log = found
        is_wrong = database_bytes is not None and database.st_size != database_bytes
        if self._files[""] != _state(database) and not log.st_size and is_wrong:
            self.lose(f"{self._path} was changed by another program")
        self._files[""], self._files["-wal"] = map(_state, found)

    def disconnected(self) -> None:
        """Forgets the log, and the content of the database: closing the connection changed them."""
        for suffix in ("-wal", "-shm"):
            self._files.pop(suffix, None)
        known = self._files.get("")
        if known is not None:
            self._files[""] = _File(known.identity)

    def database_is_ours(self) -> bool:
        """Tells whether the database itself, at its path, is as it was left."""
        return self._is_as_known("")

    def log_is_ours(self) -> bool:
        """Tells whether the log, at its path, is as it was left."""
        return self._is_as_known("-wal")

    def lose(self, what: str) -> NoReturn:
        """Sets `lost` and raises FilesLost."""
        if self.lost is None:
            self.lost = f"{what} while ruvd had it open: it is closed until ruvd is restarted"
            _log.critical("store files lost", extra={"path": str(self._path), "detail": self.lost})
        raise FilesLost(self.lost)

    def _check_lost(self) -> None:
        if self.lost is not None:
            raise FilesLost(self.lost)

    def _compare(self, suffix: str, known: _File | None) -> os.stat_result:
        path = self._names[suffix]
        try:
            found = os.stat(path)  # noqa: PTH116  # half of pathlib's time, at each batch
        except (FileNotFoundError, NotADirectoryError):
            self.lose(f"{path} was deleted or renamed")
        change = known and known.change_to(found)
        if change:
            self.lose(f"{path} {change}")
        return found

    def _is_as_known(self, suffix: str) -> bool:
        known = self._files.get(suffix)
        try:
            return known is not None and known.change_to(Path(self._names[suffix]).stat()) is None
        except OSError:
            return False
