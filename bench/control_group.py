"""A control group with a memory limit, where this process may make one."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count()


class ControlGroup:
    """A control group, of version 1 or 2."""

    def __init__(self, path: Path, *, version: int) -> None:
        self._path = path
        self._peak = path / ("memory.peak" if version > 1 else "memory.max_usage_in_bytes")

    def command(self, *command: str) -> Sequence[str]:
        """Returns a command that runs another one in the group."""
        join = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", join, str(self._path / "cgroup.procs"), *command]

    def peak_mib(self) -> float | None:
        """Returns the most memory that the group has used, with its part of the page cache."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._peak.read_text()) / (1 << 20)
        return None


@contextlib.contextmanager
def control_group(limit_bytes: int) -> Iterator[ControlGroup | None]:
    """Makes a group with a memory limit, None where that is not possible, and removes it again."""
    version = 2 if (_ROOT / "cgroup.controllers").exists() else 1
    parent = _ROOT if version > 1 else _ROOT / "memory"
    path = parent / f"ruvd-bench-{os.getpid()}-{next(_numbers)}"
    try:
        path.mkdir()
        limit = path / ("memory.max" if version > 1 else "memory.limit_in_bytes")
        limit.write_text(str(limit_bytes))
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        yield None
        return
    try:
        yield ControlGroup(path, version=version)
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()
