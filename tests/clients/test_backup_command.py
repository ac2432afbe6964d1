"""`ruvd backup` of the store of a real daemon that keeps writing."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from running import StartDaemon
from ruvd_client import AsyncClient, SessionView

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]


async def test_a_store_is_backed_up_while_the_daemon_answers_and_a_daemon_runs_on_the_copy(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    store = ("--engine", "echo", "--store", f"sqlite:{path}")
    async with daemon(*store) as running, AsyncClient(running.address) as client:
        await client.complete("hello", session_id="s").text()

        async def talk() -> None:
            while True:
                await client.complete("go on", session_id="s").text()

        talking = asyncio.create_task(talk())
        done = await ruvd("backup", str(copy), "--store", f"sqlite:{path}")
        assert (done.returncode, done.stderr) == (0, "")
        assert "bytes, checked" in done.stdout
        refused = await ruvd("backup", str(copy), "--store", f"sqlite:{path}")
        assert refused.returncode == 1
        assert (
            refused.stderr == f"ruvd: {copy} exists (--force replaces a file that is not in use)\n"
        )
        forced = await ruvd("backup", str(copy), "--force", "--store", f"sqlite:{path}")
        assert forced.returncode == 0
        talking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talking
    async with (
        daemon("--engine", "echo", "--store", f"sqlite:{copy}") as restored,
        AsyncClient(restored.address) as client,
    ):
        session = await client.get_session("s", SessionView.SESSION_VIEW_FULL)
        assert session.exchange_count > 1
        assert session.message_count == len(session.messages) == 2 * session.exchange_count
        assert await client.complete("and on", session_id="s").text() == "and on"


async def test_backing_up_a_memory_store_or_a_missing_file_is_an_error(
    ruvd: Ruvd, tmp_path: Path
) -> None:
    done = await ruvd("backup", str(tmp_path / "copy.db"), "--store", "memory")
    assert done.returncode == 2
    assert "the memory store has no file" in done.stderr
    done = await ruvd("backup", str(tmp_path / "copy.db"), "--store", f"sqlite:{tmp_path}/none.db")
    assert done.returncode == 1
    assert "there is no store at" in done.stderr
