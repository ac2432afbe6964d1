"""A daemon whose store files are lost, damaged or read-only: it notices, and covers nothing up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon, StartDaemon
from wire import contents, details, say, turn

from ruvd.sealing.keys import add_key
from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


async def health(running: RunningDaemon, service: str) -> int:
    async with grpc.aio.insecure_channel(running.socket) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """The code and the reason with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), details(caught.value)[0]


def delete_database(path: Path) -> None:
    path.unlink()


def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def empty_database(path: Path) -> None:
    path.write_bytes(b"")


def replace_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    path.parent.mkdir()
    shutil.copyfile(path.parent.with_name("away") / path.name, path)


@pytest.mark.parametrize("lose", [delete_database, delete_log, replace_directory])
async def test_a_daemon_whose_store_files_are_lost_refuses_turns_and_saves_what_it_has_open(
    daemon: StartDaemon, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "state" / "s.db"
    store = ("--store", f"sqlite:{path}")
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        for text in ("one", "two"):
            await say(stub, text, "s")
        assert await health(running, "readiness") == SERVING
        await asyncio.to_thread(lose, path)
        # Nobody calls the daemon meanwhile: it notices by itself.
        lost = await running.logged("store files lost")
        assert (lost["level"], lost["path"]) == ("critical", str(path))
        assert str(path.parent) in lost["detail"]
        down = await running.logged("store down")
        assert down["level"] == "error"
        assert down["detail"] == lost["detail"]
        assert await health(running, "readiness") == NOT_SERVING
        assert await health(running, "liveness") == SERVING
        session = pb.GetSessionRequest(session_id="s")
        for call in (
            say(stub, "three", "s"),
            say(stub, "hello", "new"),
            stub.GetSession(session),
            stub.EndSession(pb.EndSessionRequest(session_id="s")),
            stub.ListSessions(pb.ListSessionsRequest()),
        ):
            assert await failure(call) == UNAVAILABLE
        assert (await say(stub, "stateless")).message.content == "stateless"
        rescue = Path((await running.logged("rescue copy written"))["path"])
        assert rescue.stat().st_mode & 0o777 == 0o600
        running.kill()
    # The steps of docs/operations.md: move what is left away, and put the rescue copy in place.
    await asyncio.to_thread(put_in_place, rescue, path)
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        assert await contents(stub, "s") == ["one", "one", "two", "two"]
        await say(stub, "three", "s")
        assert await health(running, "readiness") == SERVING


def put_in_place(rescue: Path, path: Path) -> None:
    left = path.with_name("left")
    left.mkdir()
    for suffix in ("", "-wal", "-shm"):
        if Path(f"{path}{suffix}").exists():
            Path(f"{path}{suffix}").rename(left / f"{path.name}{suffix}")
    rescue.rename(path)


async def test_a_daemon_whose_database_is_emptied_does_not_begin_a_new_one_in_it(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    async with daemon(*ECHO, "--store", f"sqlite:{path}") as running, running.stub() as stub:
        await say(stub, "one", "s")
        await asyncio.to_thread(empty_database, path)
        await running.logged("store files lost")
        assert await failure(say(stub, "two", "s")) == UNAVAILABLE
        assert await failure(say(stub, "hello", "new")) == UNAVAILABLE
        assert await health(running, "readiness") == NOT_SERVING
    assert path.stat().st_size == 0


async def test_a_daemon_that_finds_a_rescue_copy_in_place_of_its_database_waits_for_a_decision(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = ("--store", f"sqlite:{path}")
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        await say(stub, "one", "s")
        await asyncio.to_thread(delete_database, path)
        rescue = Path((await running.logged("rescue copy written"))["path"])
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        assert f"rename {rescue} to s.db" in (await running.logged("store down"))["detail"]
        assert await failure(say(stub, "two", "s")) == UNAVAILABLE
        assert not path.exists()
        await asyncio.to_thread(rescue.rename, path)
        await running.logged("store up")
        assert await contents(stub, "s") == ["one", "one"]


async def test_a_turn_that_runs_while_the_log_is_deleted_is_not_acknowledged(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    flags = (*ECHO, "--echo-delay-seconds", "0.2", "--store", f"sqlite:{path}")
    async with daemon(*flags) as running, running.stub() as stub:
        await say(stub, "one", "s")
        call = stub.Complete(turn("a b c d e f g h", "s"))
        seen: list[str | None] = []

        async def read() -> None:
            async for response in call:
                seen.append(response.event.WhichOneof("event"))
                if seen == ["started"]:
                    await asyncio.to_thread(delete_log, path)

        assert await failure(read()) == UNAVAILABLE
        assert seen[0] == "started"
        assert "finished" not in seen


async def test_a_conversation_whose_stored_bytes_were_changed_is_refused_and_others_go_on(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = ("--store", f"sqlite:{path}")
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        await say(stub, "It costs 1000 EUR.", "s", request_id="r")
        await say(stub, "Hello.", "other")
    stored = await asyncio.to_thread(path.read_bytes)
    assert stored.count(b"1000 EUR") == 2
    await asyncio.to_thread(path.write_bytes, stored.replace(b"1000 EUR", b"9000 EUR"))
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        full = pb.SESSION_VIEW_FULL
        for call in (
            stub.GetSession(pb.GetSessionRequest(session_id="s", view=full)),
            say(stub, "And now?", "s"),
            say(stub, "It costs 1000 EUR.", "s", request_id="r"),
        ):
            assert await failure(call) == (grpc.StatusCode.DATA_LOSS, "DATA_CORRUPTED")
        logged = await running.logged("stored data damaged", count=3)
        assert (logged["level"], logged["session_id"]) == ("error", "s")
        assert "EUR" not in str(running.log)
        await say(stub, "And now?", "other")
        assert await contents(stub, "other") == ["Hello.", "Hello.", "And now?", "And now?"]
        assert await health(running, "readiness") == SERVING
        await stub.EndSession(pb.EndSessionRequest(session_id="s"))
        await say(stub, "A new one.", "s")


# Without these capabilities even root has to keep to the permissions of files.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def permissions_hold() -> tuple[str, ...]:
    """The command under which a daemon has to keep to permissions; skips if there is none."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv") or subprocess.run([*BOUND, "true"], check=False).returncode:
        pytest.skip("runs as root, and cannot drop capabilities")
    return BOUND


def read_only_mount(folder: Path) -> tuple[str, ...]:
    """The command under which a folder is on a read-only mount; skips if there is none."""
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}"'
    under = ("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")
    if os.geteuid() or subprocess.run([*under, "true"], check=False).returncode:
        pytest.skip("cannot mount")
    return under


def set_modes(folder: Path, *, directory: int, files: int) -> None:
    folder.chmod(directory)
    for file in folder.iterdir():
        file.chmod(files)


@pytest.mark.parametrize(
    ("how", "is_killed"),
    [
        ("file", False),
        ("directory", False),
        ("directory", True),
        ("mount", False),
        ("mount", True),
        ("mount, encrypted", True),
    ],
)
async def test_a_read_only_store_is_read_after_a_restart_and_written_once_it_can_be(
    daemon: StartDaemon,
    tmp_path: Path,
    how: str,
    is_killed: bool,  # noqa: FBT001
) -> None:
    path = tmp_path / "state" / "s.db"
    under = await asyncio.to_thread(permissions_hold)
    store: tuple[str, ...] = ("--store", f"sqlite:{path}")
    if "encrypted" in how:
        await asyncio.to_thread(add_key, tmp_path / "keys")
        store += ("--encryption-key-file", f"{tmp_path}/keys")
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        await say(stub, "one", "s", request_id="r")
        await say(stub, "two", "s")
        if is_killed:
            running.kill()
    if "mount" in how:
        under = await asyncio.to_thread(read_only_mount, path.parent)
    else:
        directory = 0o500 if how == "directory" else 0o700
        await asyncio.to_thread(set_modes, path.parent, directory=directory, files=0o400)
    before = await asyncio.to_thread(snapshot, path.parent)
    async with daemon(*ECHO, *store, under=under) as running, running.stub() as stub:
        down = await running.logged("store down")
        assert "sessions can still be read" in down["detail"]
        assert await health(running, "readiness") == NOT_SERVING
        assert await contents(stub, "s") == ["one", "one", "two", "two"]
        sessions = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
        assert [session.id for session in sessions] == ["s"]
        metrics = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
        assert metrics.total_sessions == 1
        for call in (
            say(stub, "three", "s"),
            say(stub, "hello", "new"),
            stub.EndSession(pb.EndSessionRequest(session_id="s")),
        ):
            assert await failure(call) == UNAVAILABLE
        assert await contents(stub, "s") == ["one", "one", "two", "two"]
        assert await asyncio.to_thread(snapshot, path.parent) == before
        if "mount" in how:
            return
        await asyncio.to_thread(set_modes, path.parent, directory=0o700, files=0o600)
        await running.logged("store up")
        await say(stub, "three", "s")
        assert await contents(stub, "s") == ["one", "one", "two", "two", "three", "three"]
        assert await health(running, "readiness") == SERVING


def snapshot(folder: Path) -> dict[str, bytes]:
    """The files but the index of the log, which readers lock."""
    files = [each for each in folder.iterdir() if not each.name.endswith("-shm")]
    return {file.name: file.read_bytes() for file in files}


async def test_a_read_only_store_is_locked_too(daemon: StartDaemon, tmp_path: Path) -> None:
    path = tmp_path / "state" / "s.db"
    under = await asyncio.to_thread(permissions_hold)
    store = ("--store", f"sqlite:{path}")
    async with daemon(*ECHO, *store) as running, running.stub() as stub:
        await say(stub, "one", "s")
    await asyncio.to_thread(set_modes, path.parent, directory=0o500, files=0o400)
    async with daemon(*ECHO, *store, under=under) as running:
        await running.logged("store down")
        second = await asyncio.create_subprocess_exec(
            *under, sys.executable, "-m", "ruvd", "serve", *ECHO, *store,
            "--listen", f"unix:{tmp_path}/second.sock",
        )  # fmt: skip
        assert await second.wait() == 4
