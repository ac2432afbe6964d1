"""The places that audit records go to, apart from files: a contract, and standard output."""

import os
import select
from typing import NamedTuple, Protocol

from ruvd.telemetry.audit.chain import Fields, Position

# A pipe takes that much at once whenever poll() says that it takes anything (POSIX: PIPE_BUF).
_CHUNK_BYTES = 4096
_WAIT_MILLISECONDS = 500


class Prepared(NamedTuple):
    """The news of an output before the next record."""

    is_new: bool = False
    """Whether the next record begins a new file."""
    events: tuple[Fields, ...] = ()
    """Fields of records to write first."""


class Output(Protocol):
    """A place for records. Its methods block, and are called by one thread at a time."""

    def open(self) -> tuple[Position, bytes, bool]:
        """Returns the last record, the bytes of an incomplete one after it, and whether the next
        record begins on a new line. Raises OSError."""

    def prepare(self) -> Prepared:
        """Makes the output ready for records. Raises OSError."""

    def write(self, data: bytes) -> int:
        """Writes lines; returns the number of bytes that were written. Raises OSError for none."""

    def close(self) -> None:
        """Closes the output, and ends a write that hangs if that is possible."""


class StandardOutput:
    """Writes records to standard output. Each daemon begins a chain of its own there."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def open(self) -> tuple[Position, bytes, bool]:
        """Returns the beginning of a chain."""
        return Position(), b"", True

    def prepare(self) -> Prepared:
        """Does nothing."""
        return Prepared()

    def write(self, data: bytes) -> int:
        """Writes as much as the reader of a pipe takes, so that a slow one cannot block."""
        written = 0
        while written < len(data):
            if not self._poll.poll(_WAIT_MILLISECONDS):
                if written:
                    break
                raise TimeoutError("nobody reads the standard output")
            try:
                written += os.write(self._descriptor, data[written : written + _CHUNK_BYTES])
            except OSError:
                if written:
                    break
                raise
        return written

    def close(self) -> None:
        """Does nothing, because standard output belongs to the process."""
