"""The directory in memory through which KV states pass, if they are encrypted.

llama.cpp reads and writes states in plain. So it does that on a tmpfs, and ruvd seals a state from
there into the directory of states, and opens it there before it is restored. One state at a time is
in plain, so the memory that this takes is bounded by the largest file that the server may write.
What a killed daemon has left in memory is removed by the next one.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from ruvd.engines.llama.state_directory import (
    DirectoryRefused,
    ScratchUnavailable,
    StateDirectory,
    open_directory,
)
from ruvd.sealing.aead import SealBroken
from ruvd.sealing.files import open_file, seal_file
from ruvd.sealing.keys import KeyMissing, OperatorKeys

# See statfs(2).
_IN_MEMORY = (0x01021994, 0x858458F6)  # tmpfs, ramfs
_STATFS_BYTES = 512


class Scratch:
    """A directory in memory. Methods block, except `turn`.

    `base` is a directory on a tmpfs, in which it is made by `open`. `keys` seal the states.
    """

    def __init__(self, base: Path, keys: OperatorKeys) -> None:
        self._base = base
        self._keys = keys
        self._lock = asyncio.Lock()
        self._opened: StateDirectory | None = None
        self.path: Path | None = None

    def open(self) -> Path:
        """Makes the directory and returns its path. Raises ScratchUnavailable."""
        try:
            if not _is_in_memory(self._base):
                raise ScratchUnavailable(f"{self._base} is not on a tmpfs")
            prefix = f"ruvd-kv-{os.geteuid()}-"
            for stale in self._base.glob(f"{prefix}*"):
                _remove_stale(stale)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=self._base))
            self._opened = open_directory(self.path)
        except OSError as error:
            raise ScratchUnavailable(f"{self._base}: {error.strerror}") from error
        except DirectoryRefused as refused:
            raise ScratchUnavailable(str(refused)) from refused
        return self.path

    def close(self) -> None:
        """Removes the directory. Idempotent."""
        opened, self._opened = self._opened, None
        if opened is not None and self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            opened.close()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Waits for the turn of one state to pass through, and removes what is left in the end."""
        async with self._lock:
            try:
                yield
            finally:
                await asyncio.shield(asyncio.to_thread(self.clear))

    def create(self, name: str) -> None:
        """Creates an empty file for the server to write to."""
        self._directory.create(name)

    def clear(self) -> None:
        """Deletes all states in it."""
        if self._opened is not None:
            for name in self._opened.names():
                self._opened.remove(name)

    def seal(self, name: str, into: StateDirectory) -> int:
        """Seals a state into a file of that name; returns the size of the file. Raises OSError."""
        into.create(name)
        with self._directory.reading(name) as source, into.writing(name) as target:
            seal_file(source, target, self._keys.ring, name.encode())
        return into.size(name)

    def unseal(self, name: str, source: StateDirectory) -> bool:
        """Opens the sealed state of that name; returns False if it is damaged. Raises OSError."""
        self._directory.create(name)
        with source.reading(name) as sealed, self._directory.writing(name) as target:
            try:
                open_file(sealed, target, self._keys.ring, name.encode())
            except (SealBroken, KeyMissing):
                return False
        return True

    @property
    def _directory(self) -> StateDirectory:
        if self._opened is None:
            raise OSError("the directory in memory is closed")
        return self._opened


def _is_in_memory(path: Path) -> bool:
    """Returns whether the path is on a file system in memory, by statfs(2)."""
    statfs = getattr(ctypes.CDLL(None, use_errno=True), "statfs", None)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if statfs is None or statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_ulong.from_buffer(buffer).value in _IN_MEMORY


def _remove_stale(path: Path) -> None:
    """Removes the directory of a daemon that was killed; one that runs has locked its own."""
    with contextlib.suppress(OSError, DirectoryRefused):
        opened = open_directory(path)
        try:
            shutil.rmtree(path)
        finally:
            opened.close()
