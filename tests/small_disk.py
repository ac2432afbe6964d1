"""A small disk that can be filled: a tmpfs in a mount namespace of its own, where a daemon runs by
`nsenter`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DISK_BYTES = 16 << 20


@dataclass
class SmallDisk:
    """A small disk at `path`, as programs see it that run `under` these words."""

    path: Path
    pid: int
    under: tuple[str, ...]

    @property
    def outside(self) -> Path:
        """The same directory, as this process sees it."""
        return Path(f"/proc/{self.pid}/root{self.path}")

    def flags(self) -> tuple[str, ...]:
        return "--engine", "echo", "--store", f"sqlite:{self.path}/s.db"

    def has_reserve(self) -> bool:
        """Whether the daemon has its room on the disk."""
        reserve = self.outside / "s.db.reserve"
        return reserve.exists() and reserve.stat().st_size > 0

    def fill(self) -> Path:
        """Takes all room that is left, as another program may."""
        disk = os.statvfs(self.outside)
        filler = self.outside / "filler"
        filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize))
        return filler

    def has(self, mark: str) -> bool:
        """Whether the bytes are in a file of the store."""
        return any(mark.encode() in file.read_bytes() for file in self.outside.iterdir())


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    mount = f'mount -t tmpfs -o size={DISK_BYTES},mode=700 ruvd "$0" && echo mounted && exec cat'
    holder = await asyncio.create_subprocess_exec(
        "unshare", *user, "--mount", "sh", "-c", mount, str(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        if await holder.stdout.readline() != b"mounted\n":
            pytest.skip("may not mount a file system")
        enter = ("nsenter", "--target", str(holder.pid), "--mount")
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        yield SmallDisk(path, holder.pid, (*enter, *user))
    finally:
        holder.stdin.close()
        await holder.wait()
