"""A directory in which one daemon keeps KV states, and the operations on its files.

A directory is used only if ruvd made it, or if it was empty: its lock file contains a mark. No
directory of somebody else, and none behind a symbolic link, is used or changed. Files are opened
and deleted by their names in the open directory, without following links.
"""

import fcntl
import hashlib
import os
import re
import stat
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path

from ruvd.core.private_files import open_private

STATE = ".kv"
SEAL = ".seal"
PART = ".part"
_OURS = re.compile(r"[0-9a-f]{24}\.(kv|seal|part)")
_LOCK = "lock"
_MARK = b"ruvd keeps KV states in this directory\n"
_OTHERS_MAY_WRITE = 0o022
_OTHERS = 0o007


class DirectoryRefused(Exception):
    """A directory must not be used; the message says why, and what to do."""


class ScratchUnavailable(Exception):
    """Encrypted states cannot pass through memory; the message says why."""


class StateDirectory:
    """A directory that this process has locked, until `close`. Methods block."""

    def __init__(self, descriptor: int, lock: int) -> None:
        self._descriptor = descriptor
        self._lock = lock

    def close(self) -> None:
        """Unlocks the directory."""
        os.close(self._lock)
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """Returns the names of ruvd's files."""
        return [name for name in _names(self._descriptor) if _OURS.fullmatch(name)]

    def create(self, name: str) -> None:
        """Creates an empty file, with permissions for its owner only."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(open_private(name, flags, dir_fd=self._descriptor))

    def size(self, name: str) -> int:
        """Returns the size of a file. Raises OSError, also if it is not a regular file."""
        with self.reading(name) as stream:
            return os.fstat(stream.fileno()).st_size

    def age(self, name: str) -> float:
        """Returns the time when the file was last written."""
        status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        return status.st_mtime

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with self.reading(name) as stream:
            return stream.read()

    def sha256(self, name: str) -> str:
        """Returns the checksum of a file."""
        with self.reading(name) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file as a whole: a daemon that is killed leaves no half of it."""
        part = str(Path(name).with_suffix(PART))
        self.remove(part)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        with os.fdopen(open_private(part, flags, dir_fd=self._descriptor), "wb") as stream:
            stream.write(content)
        os.replace(part, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Deletes a file, or the link of that name, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def writing(self, name: str) -> BufferedWriter:
        """Opens a file that exists, to write it."""
        flags = os.O_WRONLY | os.O_TRUNC
        return os.fdopen(open_private(name, flags, dir_fd=self._descriptor), "wb")

    def reading(self, name: str) -> BufferedReader:
        """Opens a file to read it."""
        return os.fdopen(open_private(name, os.O_RDONLY, dir_fd=self._descriptor), "rb")


def open_directory(path: Path, *, is_default: bool = False) -> StateDirectory:
    """Opens and locks a directory; one that does not exist is made, with mode 0700. Blocks.

    `is_default` says that ruvd chose the path itself. Raises DirectoryRefused, BlockingIOError if
    another daemon has it, or another OSError.
    """
    _make(path)
    descriptor = _open(path)
    try:
        _check(path, descriptor, is_default=is_default)
        return StateDirectory(descriptor, _lock(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def has_content(path: Path) -> bool:
    """Tells whether there is something at the path, other than an empty directory. Blocks."""
    try:
        return path.is_symlink() or any(path.iterdir())
    except FileNotFoundError:
        return False
    except OSError:  # for example, it is a file, or it belongs to somebody else
        return True


def _make(path: Path) -> None:
    if not os.path.lexists(path):
        _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            reason = "is a symbolic link: name the directory itself"
        elif not stat.S_ISDIR(status.st_mode):
            reason = "is not a directory"
        elif not (reason := _owner_refusal(path, status)):
            raise
        raise DirectoryRefused(f"{path} {reason}") from None


def _owner_refusal(path: Path, status: os.stat_result) -> str:
    user = os.geteuid()
    if status.st_uid == user:
        return ""
    text = f"belongs to user {status.st_uid} and not to user {user}: name a directory that does not"
    return f"{text} exist yet{_example(path)}"


def _example(path: Path) -> str:
    """Returns the end of an advice: a name in the directory, if this user may use it."""
    return f", such as {path / 'ruvd-kv'}" if os.access(path, os.W_OK | os.X_OK) else ""


def _check(path: Path, descriptor: int, *, is_default: bool) -> None:
    """Raises DirectoryRefused if ruvd must not use a directory. Changes nothing in it."""
    status = os.fstat(descriptor)
    reason = _owner_refusal(path, status)
    if not reason and _names(descriptor):
        reason = _content_refusal(path, descriptor, is_default=is_default)
    elif not reason and status.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        reason = f"can be changed by other users (mode {mode:04o}): run `chmod 700 {path}`"
    if reason:
        raise DirectoryRefused(f"{path} {reason}")


def _content_refusal(path: Path, descriptor: int, *, is_default: bool) -> str:
    names = _names(descriptor)
    mark = _mark(descriptor) if _LOCK in names else b""
    if mark == _MARK:
        return ""
    # Earlier versions wrote no mark. They gave the directory mode 0700 at each start, to which
    # Kubernetes may have added access for the group of a volume.
    was_ours = is_default or all(name == _LOCK or _OURS.fullmatch(name) for name in names)
    if was_ours and mark == b"" and not os.fstat(descriptor).st_mode & _OTHERS:
        return ""
    return (
        "has files and was not made by ruvd: name a directory that is empty or does not exist yet"
        f"{_example(path)}"
    )


def _lock(descriptor: int) -> int:
    """Locks and marks a directory. Raises BlockingIOError if it is locked, or another OSError."""
    lock = open_private(_LOCK, os.O_CREAT | os.O_RDWR, dir_fd=descriptor)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_size == 0:
            os.pwrite(lock, _MARK, 0)
        # It is ruvd's own. Again, Kubernetes may have given access to the group.
        if os.fstat(descriptor).st_mode & _OTHERS_MAY_WRITE:
            os.fchmod(descriptor, 0o700)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _names(descriptor: int) -> list[str]:
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in entries]


def _mark(descriptor: int) -> bytes | None:
    """Returns what the lock file contains, or None if it is not ruvd's."""
    try:
        lock = open_private(_LOCK, os.O_RDONLY, dir_fd=descriptor)
    except OSError:
        return None
    try:
        is_own = os.fstat(lock).st_uid == os.geteuid()
        return os.pread(lock, len(_MARK) + 1, 0) if is_own else None
    finally:
        os.close(lock)
