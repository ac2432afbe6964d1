"""Administration without a daemon: requests, the log level, secrets, tenants, backups, settings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from core import Core, settle
from google.protobuf.duration_pb2 import Duration

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.config.settings import Settings
from ruvd.core.completions.tenant_list import TenantList
from ruvd.core.errors import (
    BackupFailed,
    CompletionCancelled,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
)
from ruvd.core.ports.events import EngineStateChanged, StoreStateChanged
from ruvd.core.ports.secrets import SecretOutcome, SecretSource
from ruvd.engines.chat.credentials import ApiKey
from ruvd.rpc.admin import requests
from ruvd.rpc.admin.ports import BackupFile
from ruvd.rpc.health import Health, Readiness
from ruvd.rpc.validation import RequestLimits
from ruvd.rpc.watched_files import Contents, WatchedFiles
from ruvd.server.backups import Backups
from ruvd.server.log_level import LogLevelControl

LIMITS = RequestLimits()
UNCHANGED, TAKEN, REFUSED = SecretOutcome.UNCHANGED, SecretOutcome.TAKEN, SecretOutcome.REFUSED


def duration(seconds: int, nanos: int = 0) -> Duration:
    return Duration(seconds=seconds, nanos=nanos)


@pytest.mark.parametrize(
    ("check", "request_", "fields"),
    [
        (requests.drain, pb.DrainRequest(wait_timeout=duration(-1)), ["wait_timeout"]),
        (requests.drain, pb.DrainRequest(wait_timeout=duration(86_401)), ["wait_timeout"]),
        (requests.drain, pb.DrainRequest.FromString(b"\x50\x01"), ["10"]),
        (requests.nothing, pb.UndrainRequest.FromString(b"\x50\x01"), ["10"]),
        (requests.set_log_level, pb.SetLogLevelRequest(level=9), ["level"]),  # type: ignore[arg-type]
        (
            requests.set_log_level,
            pb.SetLogLevelRequest(level=7, duration=duration(90_000)),  # type: ignore[arg-type]
            ["level", "duration"],
        ),
        (requests.set_log_level, pb.SetLogLevelRequest(duration=duration(5)), ["duration"]),
        (
            requests.set_log_level,
            pb.SetLogLevelRequest(level=pb.LOG_LEVEL_DEBUG, duration=duration(0)),
            ["duration"],
        ),
        *(
            (requests.backup, pb.BackupRequest(name=name), ["name"])
            for name in (
                "/etc/cron.d/x", "../x", "a/b", ".hidden", "-f", "a b", "a\n", "x" * 129, "ä",
                "x.db-wal", "x.db-journal", "x.db-shm", "x.part", "x.lock", "a\0b",
            )
        ),
        (requests.list_tenants, pb.ListTenantsRequest(page_size=-1), ["page_size"]),
        (
            requests.list_tenants,
            pb.ListTenantsRequest(page_size=1001, page_token="?"),
            ["page_size", "page_token"],
        ),
        (requests.list_tenants, pb.ListTenantsRequest(page_token="A" * 2000), ["page_token"]),
    ],
)  # fmt: skip
def test_every_wrong_field_is_named(
    check: Callable[[Any, RequestLimits], object], request_: Any, fields: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(request_, LIMITS)
    found = [each.field for each in caught.value.violations]
    assert found == fields or len(found) == len(fields) == 1


def test_good_requests_are_converted() -> None:
    assert requests.drain(pb.DrainRequest(), LIMITS) is None
    assert requests.drain(pb.DrainRequest(wait_timeout=duration(2, 500_000_000)), LIMITS) == 2.5
    assert requests.set_log_level(pb.SetLogLevelRequest(), LIMITS) == (None, None)
    debug = pb.SetLogLevelRequest(level=pb.LOG_LEVEL_DEBUG, duration=duration(60))
    assert requests.set_log_level(debug, LIMITS) == ("debug", 60.0)
    assert requests.backup(pb.BackupRequest(), LIMITS) == ""
    assert requests.backup(pb.BackupRequest(name="before-1.2_x.db"), LIMITS) == "before-1.2_x.db"
    assert requests.list_tenants(pb.ListTenantsRequest(), LIMITS) == ("", 100)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_a_log_level_for_a_while_returns_to_the_setting() -> None:
    level = LogLevelControl("warning")
    level.set("debug", 0.01)
    assert (level.current, level.expires is None) == ("debug", False)
    await until(lambda: level.current == "warning")
    assert level.expires is None
    level.set("debug", 0.01)
    level.set("error")  # the timer of the level before must not end this one
    await asyncio.sleep(0.05)
    assert (level.current, level.expires) == ("error", None)
    level.set(None)
    assert level.current == "warning"


def test_readiness_returns_after_undrain_and_never_after_stop() -> None:
    readiness = Readiness(Health("1"))
    readiness(StoreStateChanged(up=True, detail=""))
    readiness(EngineStateChanged(up=True, detail=""))
    readiness.serve()
    states = [readiness.ready]
    for change in (
        readiness.drain,
        partial(readiness, StoreStateChanged(up=False, detail="")),
        readiness.undrain,
        partial(readiness, StoreStateChanged(up=True, detail="")),
        readiness.drain,
        readiness.stop,
    ):
        change()
        states.append(readiness.ready)
    assert states == [True, False, False, False, True, False, False]
    with pytest.raises(ShuttingDown):
        readiness.undrain()
    assert not readiness.ready


# --- secrets -------------------------------------------------------------------------------


async def reloaded(source: SecretSource) -> list[tuple[SecretOutcome, str]]:
    return [(each.outcome, each.error) for each in await source.reload()]


async def test_files_are_reloaded_at_once_and_a_refusal_says_why(tmp_path: Path) -> None:
    files = {"cert": tmp_path / "cert", "key": tmp_path / "key"}
    for path in files.values():
        path.write_text("one")
    loads: list[list[bytes]] = []

    def load(contents: Contents) -> None:
        if b"bad" in contents.values():
            raise ValueError("key: is bad")
        loads.append(list(contents.values()))

    watched = await asyncio.to_thread(WatchedFiles, files, load)
    assert await reloaded(watched) == [(UNCHANGED, "")] * 2
    files["key"].write_text("two")
    assert await reloaded(watched) == [(TAKEN, "")] * 2
    assert loads[-1] == [b"one", b"two"]
    assert await reloaded(watched) == [(UNCHANGED, "")] * 2
    files["key"].write_text("bad")
    assert await reloaded(watched) == [(REFUSED, "key: is bad")] * 2
    files["key"].unlink()
    (_, error), _ = await reloaded(watched)
    assert error == f"key: cannot read {files['key']}: No such file or directory"
    files["key"].write_text("two")
    assert await reloaded(watched) == [(UNCHANGED, "")] * 2, "what is in use is the same"
    seen = len(loads)
    for _ in range(2):
        await asyncio.to_thread(watched.check)
    assert len(loads) == seen, "a check has nothing to do after a reload"


async def test_a_change_that_a_check_sees_while_a_reload_runs_is_loaded_once_at_a_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    inside = 0

    def load(_: Contents) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        threading.Event().wait(0.01)
        inside -= 1

    watched = await asyncio.to_thread(WatchedFiles, {"file": path}, load)
    path.write_text("two")
    await asyncio.to_thread(watched.check)
    reloads = [watched.reload() for _ in range(3)]
    await asyncio.gather(*reloads, asyncio.to_thread(watched.check))


async def test_an_api_key_is_reloaded_and_a_wrong_one_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = ApiKey("", path)
    ((outcome, error),) = await reloaded(key)
    assert outcome is REFUSED
    assert error.startswith("cannot read api_key_file ")
    path.write_text("sk-first\n")
    assert await reloaded(key) == [(TAKEN, "")]
    assert await key.current() == "sk-first"
    path.write_text("sk-other\n")
    assert await reloaded(key) == [(TAKEN, "")]
    assert await reloaded(key) == [(UNCHANGED, "")]
    path.write_text("sk-\N{SNOWMAN}\n")
    assert (await reloaded(key))[0][0] is REFUSED
    assert (await reloaded(key))[0][0] is REFUSED
    assert await key.current() == "sk-other"
    path.unlink()
    ((outcome, error),) = await reloaded(key)
    assert (outcome, "cannot read" in error) == (REFUSED, True)
    assert await key.current() == "sk-other"
    assert await ApiKey("fixed").reload() == ()


# --- tenants -------------------------------------------------------------------------------


async def test_tenants_are_listed_by_name_with_their_sessions_and_completions() -> None:
    core = Core()
    for tenant in ("b", "default", "b/c", "b"):
        prefix = "" if tenant == "default" else f"{tenant}/"
        await core.say("hello", f"{prefix}s", tenant=tenant)
    core.engine.scripts = [[asyncio.Event()] for _ in range(3)]
    held = [core.start("x", "", tenant="a"), core.start("x", "", tenant="z")]
    held.append(core.start("x", "b/s", tenant="b"))
    await settle()
    tenants = TenantList(core.sessions, core.completions)
    found: list[tuple[str, int, int, int]] = []
    after, has_more, pages = "", True, 0
    while has_more:
        page, has_more = await tenants.page(after, 2)
        found += [
            (each.counts.tenant, each.counts.sessions, each.counts.messages, each.running)
            for each in page
        ]
        after, pages = page[-1].counts.tenant, pages + 1
    assert found == [
        ("a", 0, 0, 1),
        ("b", 1, 4, 1),
        ("b/c", 1, 2, 0),
        ("default", 1, 2, 0),
        ("z", 0, 0, 1),
    ]
    assert pages == 3
    for each in held:
        each.cancel(CompletionCancelled("the test has ended"))
    async with asyncio.timeout(60):
        await core.completions.wait_idle()
    assert core.completions.running == 0


# --- backups -------------------------------------------------------------------------------


class SlowCopy:
    """A copy that goes on until `gate` is set, unless its caller stops it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, source: Path, target: Path, *, progress: Callable[[int, int], None]) -> int:
        done = 0
        try:
            while not self.gate.wait(0.01):
                done += 1
                progress(done, 1000)
        except BaseException:
            self.stopped.set()
            raise
        return 7


async def test_one_backup_is_made_at_a_time_and_ends_with_its_caller(tmp_path: Path) -> None:
    copy = SlowCopy()
    backups = Backups(copy, tmp_path / "s.db", tmp_path / "made" / "backups")
    async with aclosing(backups.make("")) as first:
        assert await anext(first)
        with pytest.raises(Overloaded):
            await anext(backups.make("other"))
    assert await asyncio.to_thread(copy.stopped.wait, 60)
    copy.gate.set()
    async with asyncio.timeout(60):
        while True:
            try:
                events = [event async for event in backups.make("x.db")]
                break
            except Overloaded:  # the first one has not quite ended
                await asyncio.sleep(0.01)
    file = events[-1]
    assert file == BackupFile(str(tmp_path / "made" / "backups" / "x.db"), 7)
    assert (tmp_path / "made" / "backups").stat().st_mode & 0o777 == 0o700


async def test_a_backup_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backups = Backups(SlowCopy(), tmp_path / "s.db", tmp_path / "file" / "backups")
    with pytest.raises(BackupFailed, match=r"cannot write .*: Not a directory"):
        await anext(backups.make(""))
    backups = Backups(SlowCopy(), tmp_path / "s.db", tmp_path / "file")
    with pytest.raises(BackupFailed, match="is not a directory"):
        await anext(backups.make(""))
    with pytest.raises(BackupFailed, match="only an SQLite store"):
        await anext(Backups().make(""))


# --- settings ------------------------------------------------------------------------------


def test_the_default_admin_socket_and_backups_are_those_of_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = Settings(store="sqlite:/var/lib/ruvd/s.db")
    assert store.admin_socket == Path("/var/lib/ruvd/s.db-admin.sock")
    assert store.backups_path == Path("/var/lib/ruvd/s.db-backups")
    memory = Settings(store="memory")
    assert memory.admin_socket == tmp_path / "ruvd" / "admin.sock"
    assert memory.backups_path is None
    assert Settings(backup_dir=Path("/b")).backups_path == Path("/b")
    named = Settings(admin_listen="unix:/run/admin.sock")
    assert (named.admin_socket, named.admin_socket_is_default) == (Path("/run/admin.sock"), False)
    for none in ("", "none"):
        assert Settings(admin_listen=none).admin_socket is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "unix:", "unix:/a%20b", "yes", "unix:/r.sock"])
def test_an_admin_socket_is_a_socket_of_its_own(address: str) -> None:
    with pytest.raises(ValueError, match="admin_listen"):
        Settings(admin_listen=address, listen=["unix:/r.sock"])
