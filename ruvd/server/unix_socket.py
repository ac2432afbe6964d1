"""Binding a Unix socket: replaces a stale file but never a live listener's, with mode 0660.

gRPC deletes any socket at the path that it binds, so a second daemon would silently take over the
first one's clients. A lock file beside the socket tells whether a ruvd owns it, also when two start
at the same moment. Another program's listener is detected by connecting to it.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_PATH_BYTES = 107  # sun_path without its terminator, unix(7)


class AddressUnavailable(Exception):
    """The daemon cannot listen at an address; the message names it and the cause."""


class SocketClaim:
    """The exclusive right among ruvd processes to bind one socket path, until `release`."""

    def __init__(self, path: Path) -> None:
        """Claims the path and removes a stale socket. Raises AddressUnavailable."""
        self.path = path = path.absolute()
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise AddressUnavailable(
                f"unix:{path}: the path is longer than {_MAX_PATH_BYTES} bytes"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AddressUnavailable(f"unix:{path}: another ruvd listens there") from None
        if path.exists():
            self._remove_stale()

    def _remove_stale(self) -> None:
        if not self.path.is_socket():
            self._fail("a file that is not a socket is in the way")
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(1.0)
        try:
            probe.connect(str(self.path))
        except ConnectionRefusedError:
            self.path.unlink()
        except OSError as error:
            self._fail(str(error))
        else:
            self._fail("another process listens there")
        finally:
            probe.close()

    def _fail(self, cause: str) -> None:
        os.close(self._lock)
        raise AddressUnavailable(f"unix:{self.path}: {cause}")

    def release(self) -> None:
        """Removes the socket and releases the path. The lock file stays: removing it would race."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)


@contextmanager
def owner_and_group() -> Iterator[None]:
    """Gives sockets that are bound inside the block mode 0660 from the first moment on."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)
