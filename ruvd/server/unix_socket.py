"""Binding a Unix socket: replaces a stale socket of ruvd's, and nothing else.

gRPC deletes any socket at the path that it binds, so a second daemon would silently take over the
first one's clients. A lock file beside the socket tells whether a ruvd owns it, also when two start
at the same moment. Another program's listener is detected by connecting to it. Symbolic links in
place of the socket or of its lock file are refused.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruvd.core.private_files import open_private

_FOR_GROUP = 0o750  # for this user and its group
_MAX_PATH_BYTES = 107  # sun_path without its terminator, unix(7)


class AddressUnavailable(Exception):
    """The daemon cannot listen at an address; the message names it and the cause."""


class SocketClaim:
    """The exclusive right among ruvd processes to bind one socket path, until `release`."""

    def __init__(self, path: Path, directory_mode: int = _FOR_GROUP) -> None:
        """Claims the path, makes missing directories with this mode, and removes a stale socket.

        Raises AddressUnavailable or OSError.
        """
        self.path = path = path.absolute()
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise AddressUnavailable(
                f"unix:{path}: the path is longer than {_MAX_PATH_BYTES} bytes"
            )
        _make_directory(path.parent, directory_mode)
        try:
            self._lock = open_private(f"{path}.lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise AddressUnavailable(f"unix:{path}: {path}.lock: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_stale()
        except BlockingIOError:
            os.close(self._lock)
            raise AddressUnavailable(f"unix:{path}: another ruvd listens there") from None
        except BaseException:
            os.close(self._lock)
            raise

    def _remove_stale(self) -> None:
        status = self._status()
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            self._fail("a symbolic link is in the way: remove it, or name the socket's own path")
        if not stat.S_ISSOCK(status.st_mode):
            self._fail("a file that is not a socket is in the way")
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(1.0)
        try:
            probe.connect(str(self.path))
        except ConnectionRefusedError:
            if status.st_uid != os.geteuid():
                self._fail(f"a stale socket of user {status.st_uid} is in the way: remove it")
            self.path.unlink()
        except OSError as error:
            self._fail(str(error))
        else:
            self._fail("another process listens there")
        finally:
            probe.close()

    def _status(self) -> os.stat_result | None:
        try:
            return self.path.lstat()
        except FileNotFoundError:
            return None

    def _fail(self, cause: str) -> None:
        raise AddressUnavailable(f"unix:{self.path}: {cause}")

    def release(self) -> None:
        """Removes the socket and releases the path. The lock file stays: removing it would race."""
        status = self._status()
        if status and stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            self.path.unlink(missing_ok=True)
        os.close(self._lock)


def _make_directory(path: Path, mode: int) -> None:
    if not path.exists():
        _make_directory(path.parent, mode)
        path.mkdir(mode=mode, exist_ok=True)


@contextmanager
def socket_mode(mode: int) -> Iterator[None]:
    """Gives sockets that are bound inside the block this mode from the first moment on."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)
