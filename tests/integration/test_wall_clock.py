"""A daemon whose wall clock is set, while it runs and while it does not, keeps its sessions."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from running import StartDaemon
from wire import contents, say

from ruvd.v1 import session_service_pb2 as pb

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
IDLE_SECONDS = 1800
DAY = 86_400


class WallClock:
    """The wall clock of the daemons that run under its `command`.

    libfaketime shifts CLOCK_REALTIME in those processes, and leaves the other clocks alone.
    """

    def __init__(self, folder: Path) -> None:
        if not LIBRARIES:
            pytest.skip("needs Debian's package faketime")
        self._file = folder / "wall_clock"
        self.shift = 0
        self.set(0)
        self.command = (
            "env",
            f"LD_PRELOAD={LIBRARIES[0]}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )

    def set(self, shift: int) -> None:
        """Sets the wall clock to this many seconds after the real time."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{shift:+d}\n")
        part.replace(self._file)
        self.shift = shift

    def now(self) -> float:
        """Returns what the wall clock shows."""
        return time.time() + self.shift


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def flags(tmp_path: Path) -> tuple[str, ...]:
    store = f"sqlite:{tmp_path}/s.db"
    return "--engine", "echo", "--store", store, "--sweep-interval-seconds", "0.2"


async def session(stub: Any, session_id: str) -> pb.Session | None:
    """The session, or None if it has expired."""
    sessions = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
    return next((found for found in sessions if found.id == session_id), None)


async def idle_seconds(stub: Any, session_id: str, wall_clock: WallClock) -> float:
    """The session's idle time as a caller computes it from `expire_time` and its own clock."""
    found = await session(stub, session_id)
    assert found is not None
    return IDLE_SECONDS - (found.expire_time.ToNanoseconds() / 1e9 - wall_clock.now())


def restart_machine(path: Path) -> None:
    """Lets the store believe that the machine has restarted since the daemon ended."""
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute("UPDATE clock SET boot_id = 'another'").rowcount == 1


@pytest.mark.parametrize(("seconds", "direction"), [(1900, "forward"), (-DAY, "back")])
async def test_a_step_of_the_wall_clock_expires_nothing_and_is_logged_with_its_size(
    daemon: StartDaemon,
    wall_clock: WallClock,
    flags: tuple[str, ...],
    seconds: int,
    direction: str,
) -> None:
    async with daemon(*flags, under=wall_clock.command) as d, d.stub() as stub:
        await say(stub, "before", "untouched")
        await say(stub, "before", "used")
        wall_clock.set(seconds)
        stepped = await d.logged("wall clock set", direction=direction)
        assert stepped["seconds"] == pytest.approx(abs(seconds), abs=2)
        await say(stub, "during", "used")
        await say(stub, "during", "created")
        for session_id in ("untouched", "used", "created"):
            assert await idle_seconds(stub, session_id, wall_clock) == pytest.approx(0, abs=30)
        wall_clock.set(0)
        await d.logged("wall clock set", count=2)
        await asyncio.sleep(0.5)  # two sweeps, which must find nothing
        assert await contents(stub, "untouched") == ["before"] * 2
        assert await contents(stub, "used") == ["before"] * 2 + ["during"] * 2
        assert await contents(stub, "created") == ["during"] * 2


@pytest.mark.parametrize(("seconds", "is_killed"), [(1900, False), (1900, True), (-DAY, True)])
async def test_a_step_between_two_runs_within_a_boot_expires_nothing(
    daemon: StartDaemon,
    wall_clock: WallClock,
    flags: tuple[str, ...],
    seconds: int,
    is_killed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async with daemon(*flags, under=wall_clock.command) as first, first.stub() as stub:
        await say(stub, "one", "s")
        if is_killed:
            first.kill()
            await first.ended()
    wall_clock.set(seconds)
    async with daemon(*flags, under=wall_clock.command) as second, second.stub() as stub:
        assert await idle_seconds(stub, "s", wall_clock) == pytest.approx(0, abs=30)
        assert (await say(stub, "two", "s")).exchange_count == 2
        stepped = await second.logged("wall clock set")
        assert stepped["seconds"] == pytest.approx(abs(seconds), abs=2)


@pytest.mark.parametrize("seconds", [-DAY, 600, 1900])
async def test_after_a_restart_of_the_machine_idle_times_go_by_the_wall_clock(
    daemon: StartDaemon,
    wall_clock: WallClock,
    flags: tuple[str, ...],
    tmp_path: Path,
    seconds: int,
) -> None:
    async with daemon(*flags, under=wall_clock.command) as first, first.stub() as stub:
        await say(stub, "one", "s")
    await asyncio.to_thread(restart_machine, tmp_path / "s.db")
    wall_clock.set(seconds)
    async with daemon(*flags, under=wall_clock.command) as second, second.stub() as stub:
        if seconds > IDLE_SECONDS:
            assert await session(stub, "s") is None
        else:
            idle = await idle_seconds(stub, "s", wall_clock)
            assert idle == pytest.approx(max(0, seconds), abs=30)
            assert (await say(stub, "two", "s")).exchange_count == 2
        if seconds < 0:
            behind = await second.logged("wall clock behind the store")
            assert behind["seconds"] == pytest.approx(-seconds, abs=30)
