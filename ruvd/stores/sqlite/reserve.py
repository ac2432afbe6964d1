"""A file that takes up room on the disk, so that sessions can be deleted when it is full.

SQLite writes to its log before anything in the database becomes free. On a full disk this room is
given back for that. It is taken again once there is more than enough, and writes are refused until
then, as they would use up the room for the next deletion.
"""

import os
from pathlib import Path

from ruvd.core.private_files import open_private

# A checkpoint may write the whole log into new pages of the database, before the log is emptied.
_MAX_BYTES = 8 * 1024 * 1024
# The share of a small disk.
_DISK_SHARE = 8
# What has to be free besides the reserve, as a share of it.
_SPARE_SHARE = 4


class Reserve:
    """The reserve of the database at `path`, in a file beside it. Methods block."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}.reserve")
        self.size_bytes = _MAX_BYTES
        self.is_held = False

    def take(self) -> bool:
        """Allocates the room; returns False unless the disk also has some room besides it."""
        try:
            disk = os.statvfs(self._path.parent)
            size = min(_MAX_BYTES, disk.f_blocks * disk.f_frsize // _DISK_SHARE)
            descriptor = open_private(self._path, os.O_RDWR | os.O_CREAT)
        except OSError:
            return False
        try:
            os.posix_fallocate(descriptor, 0, size)
            self.size_bytes, self.is_held = size, True
            os.posix_fallocate(descriptor, 0, size + size // _SPARE_SHARE)
        except OSError:
            if not self.is_held:
                self.give_back()
            return False
        else:
            return True
        finally:
            os.ftruncate(descriptor, size)
            os.close(descriptor)

    def give_back(self) -> None:
        """Frees the room."""
        self._path.unlink(missing_ok=True)
        self.is_held = False
