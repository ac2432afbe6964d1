"""Files that only this user may read, opened without following symbolic links."""

import errno
import os
import stat
from pathlib import Path


def open_private(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
    """Opens a regular file and returns the descriptor. A file that this makes has mode 0600.

    With `dir_fd` the path is relative to that directory. Raises OSError, also for a symbolic link
    and for what is not a regular file, with a text that says so.
    """
    # A pipe must not block the open.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a symbolic link, which is not followed"
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor
