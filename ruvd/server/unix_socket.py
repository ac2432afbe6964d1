"""Unix sockets: taken from the dead, never from the living, and for owner and group alone.

gRPC removes whatever socket it finds at the path that it binds, so two daemons would silently
take each other's callers. A lock file beside the socket tells the living from the dead, also for
two that start at the same moment; a stranger that listens there is asked by connecting.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_PATH_BYTES = 107  # sun_path without its terminator, unix(7)


class AddressTaken(Exception):
    """Somebody listens at the address, or it cannot be listened at."""


class SocketClaim:
    """The right to bind one socket path, held until `release`."""

    def __init__(self, path: Path) -> None:
        """Claim the path and remove a dead socket. Raises AddressTaken."""
        self.path = path = path.absolute()
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise AddressTaken(f"unix:{path}: a socket's path may have {_MAX_PATH_BYTES} bytes")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AddressTaken(f"unix:{path}: another ruvd listens there") from None
        if path.exists():
            self._remove_dead()

    def _remove_dead(self) -> None:
        if not self.path.is_socket():
            self._abandon("there is a file that is no socket")
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(1.0)
        try:
            probe.connect(str(self.path))
        except ConnectionRefusedError:
            self.path.unlink()
        except OSError as error:
            self._abandon(str(error))
        else:
            self._abandon("another process listens there")
        finally:
            probe.close()

    def _abandon(self, why: str) -> None:
        os.close(self._lock)
        raise AddressTaken(f"unix:{self.path}: {why}")

    def release(self) -> None:
        """Remove the socket and give the path back. The lock file stays: removing it would race."""
        self.path.unlink(missing_ok=True)
        os.close(self._lock)


@contextmanager
def owner_and_group() -> Iterator[None]:
    """Sockets bound inside have mode 0660 from their first moment on."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)
