"""A daemon on PostgreSQL goes on with the sessions that a daemon on SQLite had."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from postgres import running
from running import StartDaemon
from wire import contents, say

from ruvd.cli import run


async def test_a_daemon_warns_at_its_start_of_a_server_that_may_lose_turns(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server", ["-c", "synchronous_commit=off"]) as server:
            url = f"postgresql://ruvd@/postgres?host={server.directory}"
            async with daemon("--engine", "echo", "--store", url, folder=tmp_path) as started:
                warning = "a setting of the store weakens a promise"
                await started.logged(warning)
                await started.logged(warning, setting="synchronous_commit", value="off")


async def test_a_repeated_request_is_answered_by_the_daemon_on_the_new_store(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "ruvd.db"
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as server:
            url = f"postgresql://ruvd@/postgres?host={server.directory}"
            engine = ("--engine", "echo", "--echo-nonce")
            async with (
                daemon(*engine, "--store", f"sqlite:{path}", folder=tmp_path) as first,
                first.stub() as stub,
            ):
                before = await say(stub, "hello", "s", request_id="r")
            arguments = ["migrate", "--from", f"sqlite:{path}", "--to", url]
            assert await asyncio.to_thread(run, arguments) == 0
            async with (
                daemon(*engine, "--store", url, folder=tmp_path) as second,
                second.stub() as stub,
            ):
                assert await say(stub, "hello", "s", request_id="r") == before
                assert (await say(stub, "again", "s")).exchange_count == 2
                assert (await contents(stub, "s"))[::2] == ["hello", "again"]
