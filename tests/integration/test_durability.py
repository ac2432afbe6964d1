"""With `durability = "full"`, a daemon flushes each commit to the disk before it acknowledges it.

The kernel tells how many bytes of the write-ahead log it has not written to the disk yet: cachestat
(Linux 6.5) counts the dirty pages of a file.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

import pytest
from running import StartDaemon
from wire import contents, say

_CACHESTAT = 451  # the same number on every architecture
FLAGS = ("--engine", "echo")


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _CacheStat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    ]


def unwritten_pages(path: Path) -> int:
    """The pages of the file that are in memory only. Raises OSError where the kernel cannot say."""
    whole, found = _Range(0, 0), _CacheStat()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(found), 0):
            raise OSError(ctypes.get_errno(), "cachestat")
    finally:
        os.close(descriptor)
    return int(found.dirty + found.writeback)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder on a disk whose unwritten pages the kernel counts."""
    probe = tmp_path / "probe"
    with probe.open("wb") as file:
        file.write(b"x" * 10_000)
        file.flush()
        try:
            before = unwritten_pages(probe)
        except OSError:
            pytest.skip("needs the system call cachestat, of Linux 6.5")
        os.fsync(file.fileno())
        if not before or unwritten_pages(probe):
            pytest.skip("the temporary folder is not on a disk")
    return tmp_path


async def unwritten_after_each_turn(daemon: StartDaemon, store: Path, durability: str) -> list[int]:
    found = []
    flags = (*FLAGS, "--store", f"sqlite:{store}", "--durability", durability)
    async with daemon(*flags) as running, running.stub() as stub:
        for number in range(5):
            await say(stub, f"turn {number}", "s")
            log = store.with_name(f"{store.name}-wal")
            found.append(await asyncio.to_thread(unwritten_pages, log))
        assert len(await contents(stub, "s")) == 10
    return found


async def test_full_durability_leaves_nothing_of_a_finished_turn_to_be_written(
    daemon: StartDaemon, disk: Path
) -> None:
    assert await unwritten_after_each_turn(daemon, disk / "full.db", "full") == [0] * 5


async def test_normal_durability_leaves_the_writing_to_the_kernel(
    daemon: StartDaemon, disk: Path
) -> None:
    """Without this the test above might pass because the kernel had written everything anyway."""
    assert any(await unwritten_after_each_turn(daemon, disk / "normal.db", "normal"))
