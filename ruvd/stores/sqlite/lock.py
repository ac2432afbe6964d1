"""The lock file, by which one process at a time has a database open."""

import fcntl
import os
from pathlib import Path

from ruvd.core.ports.store import StoreLocked
from ruvd.core.private_files import open_private


def take_lock(database: Path) -> int:
    """Returns the descriptor that holds the lock until it is closed.

    Raises StoreLocked if another process has the lock, or OSError.
    """
    path = f"{database}.lock"
    try:
        lock, is_writable = open_private(path, os.O_RDWR | os.O_CREAT), True
    except OSError:
        if not Path(path).exists():
            raise
        # A lock that cannot be written still excludes others while the database is read.
        lock, is_writable = open_private(path, os.O_RDONLY), False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_writable:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as held:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreLocked(
            f"{database} is in use by another ruvd (process {holder}, by {path}): stop it,"
            " or use another file"
        ) from held
    except BaseException:
        os.close(lock)
        raise
    return lock
