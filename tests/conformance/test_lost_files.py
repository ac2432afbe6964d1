"""Files of the SQLite store that are deleted, renamed, replaced or truncated while it is open."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from conversations import create, talk, texts, turn
from fakes import FrozenClock

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import Event, StoreStateChanged
from ruvd.stores.sqlite.backup import back_up
from ruvd.stores.sqlite.store import SqliteStore

_DEADLINE_SECONDS = 60.0
_KILOBYTE = "k" * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ruvd.db"


@asynccontextmanager
async def opened(path: Path, seen: list[Event] | None = None) -> AsyncIterator[SqliteStore]:
    seen = [] if seen is None else seen
    store = SqliteStore(path, clock=FrozenClock(), observer=seen.append)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def states(seen: list[Event]) -> list[bool]:
    return [event.up for event in seen if isinstance(event, StoreStateChanged)]


def detail(seen: list[Event]) -> str:
    return [event.detail for event in seen if isinstance(event, StoreStateChanged)][-1]


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE_SECONDS
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def rescue_copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.rescue-*Z"))


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def is_quiet(path: Path) -> bool:
    """Tells whether the store has not written for a moment, so that it is not in a checkpoint."""
    newest = max(beside(path, suffix).stat().st_mtime for suffix in ("", "-wal"))
    return time.time() - newest > 0.3


def is_rescue_over(path: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Tells whether there is a rescue copy, or none of what another file has overwritten.

    The pages that are left of such a database may or may not fit together.
    """
    messages = {record.getMessage() for record in caplog.records}
    return bool(rescue_copies(path)) or "rescue copy failed" in messages


def _delete(suffix: str) -> Callable[[Path, Path], None]:
    return lambda path, other: beside(path, suffix).unlink()


def _rename(suffix: str) -> Callable[[Path, Path], None]:
    def rename(path: Path, other: Path) -> None:
        beside(path, suffix).rename(beside(path, ".away"))

    return rename


def _replace(suffix: str) -> Callable[[Path, Path], None]:
    def replace(path: Path, other: Path) -> None:
        copy = beside(other, ".copy")
        shutil.copyfile(other, copy)
        copy.replace(beside(path, suffix))

    return replace


def _overwrite(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def _truncate(suffix: str, size: int) -> Callable[[Path, Path], None]:
    return lambda path, other: os.truncate(beside(path, suffix), size)


def _rename_directory(path: Path, other: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))


def _delete_directory(path: Path, other: Path) -> None:
    shutil.rmtree(path.parent)


def _commit(path: Path, other: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE sessions SET model = 'theirs'")


LOSSES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "the database is deleted": (_delete(""), "ruvd.db was deleted"),
    "the log is deleted": (_delete("-wal"), "ruvd.db-wal was deleted"),
    "the index of the log is deleted": (_delete("-shm"), "ruvd.db-shm was deleted"),
    "the lock is deleted": (_delete(".lock"), "ruvd.db.lock was deleted"),
    "the database is renamed": (_rename(""), "ruvd.db was deleted or renamed"),
    "the log is renamed": (_rename("-wal"), "ruvd.db-wal was deleted or renamed"),
    "the database is replaced": (_replace(""), "ruvd.db was replaced"),
    "the log is replaced": (_replace("-wal"), "ruvd.db-wal was replaced"),
    "the database is overwritten": (_overwrite, "ruvd.db was (changed|truncated)"),
    "the log is emptied": (_truncate("-wal", 0), "ruvd.db-wal was (truncated|changed)"),
    "the directory is renamed": (_rename_directory, "was deleted or renamed"),
    "the directory is deleted": (_delete_directory, "was deleted or renamed"),
    "another program commits": (_commit, "was changed by another program"),
}


@pytest.mark.parametrize(("lose", "what"), LOSSES.values(), ids=LOSSES)
async def test_a_lost_file_closes_the_store_and_leaves_a_rescue_copy(
    path: Path,
    lose: Callable[[Path, Path], None],
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = path.parent.with_name("other.db")
    async with opened(other) as store:
        await create(store, "theirs", *[_KILOBYTE] * 100)
    seen: list[Event] = []
    async with opened(path, seen) as store:
        made = await talk(store, await create(store, "s", "kept"), "too")
        assert await texts(store, "s") == ["kept", "too"]
        await until(lambda: is_quiet(path))
        await asyncio.to_thread(lose, path, other)
        await until(lambda: states(seen) == [True, False])
        if lose is _overwrite:
            await until(lambda: is_rescue_over(path, caplog))
        else:
            await until(lambda: bool(rescue_copies(path)))
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=what):
                await store.commit(turn(made, "never"))
            with pytest.raises(StoreUnavailable, match=what):
                await store.begin_turn("s", "", 1)
            with pytest.raises(StoreUnavailable, match=what):
                await store.get("s")
            with pytest.raises(StoreUnavailable, match=what):
                await create(store, "new")
        assert states(seen) == [True, False]
    if lose is _overwrite and not rescue_copies(path):
        return
    (rescue,) = rescue_copies(path)
    assert rescue.stat().st_mode & 0o777 == 0o600
    copy = path.parent.with_name("copy.db")
    rescue.rename(copy)
    async with opened(copy) as store:
        assert await texts(store, "s") == ["kept", "too"]


@pytest.mark.parametrize("size", [0, 4096])
async def test_a_truncated_database_closes_the_store_and_is_not_written_to(
    path: Path, size: int
) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        made = await create(store, "s", *[_KILOBYTE] * 100)
    async with opened(path, seen) as store:
        await until(lambda: is_quiet(path))
        await asyncio.to_thread(os.truncate, path, size)
        await until(lambda: states(seen) == [True, True, False])
        assert f"to {size} bytes" in detail(seen)
        with pytest.raises(StoreUnavailable, match="truncated"):
            await store.commit(turn(made, "never"))
    assert path.stat().st_size == size


async def test_no_commit_is_acknowledged_once_the_log_is_deleted(path: Path) -> None:
    async with opened(path) as store:
        made = await create(store, "s", "kept")
        await asyncio.to_thread(beside(path, "-wal").unlink)
        with pytest.raises(StoreUnavailable, match=r"ruvd\.db-wal was deleted"):
            await store.commit(turn(made, "lost"))


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_what_was_acknowledged_under_load_is_in_the_rescue_copy(
    path: Path, suffix: str
) -> None:
    acknowledged: dict[str, list[str]] = {}
    async with opened(path) as store:

        async def write(name: str) -> None:
            latest = await create(store, name)
            said = acknowledged.setdefault(name, [])
            for number in itertools.count():
                latest = await talk(store, latest, str(number))
                said.append(str(number))

        writers = [asyncio.create_task(write(f"s{number}")) for number in range(8)]
        await until(lambda: sum(map(len, acknowledged.values())) > 400)
        await asyncio.to_thread(beside(path, suffix).unlink)
        outcomes = await asyncio.gather(*writers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 8
        await until(lambda: bool(rescue_copies(path)))
    (rescue,) = rescue_copies(path)
    copy = path.parent.with_name("copy.db")
    rescue.rename(copy)
    async with opened(copy) as store:
        for name, said in acknowledged.items():
            assert (await texts(store, name))[: len(said)] == said


async def test_a_database_that_is_put_back_is_used_after_a_restart(path: Path) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        await create(store, "s", "kept")
        away = beside(path, ".away")
        await asyncio.to_thread(path.rename, away)
        await until(lambda: states(seen) == [True, False])
        await asyncio.to_thread(away.rename, path)
        with pytest.raises(StoreUnavailable, match="until ruvd is restarted"):
            await store.get("s")
    async with opened(path) as store:
        assert await texts(store, "s") == ["kept"]


async def test_a_store_that_closes_just_after_its_loss_is_rescued_too(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", "kept")
        await asyncio.to_thread(path.unlink)
    (rescue,) = rescue_copies(path)
    rescue.rename(path)
    async with opened(path) as store:
        assert await texts(store, "s") == ["kept"]


async def test_a_deleted_log_is_in_the_database_after_a_clean_stop(path: Path) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        await talk(store, await create(store, "s", "kept"), "too")
        await asyncio.to_thread(beside(path, "-wal").unlink)
        await until(lambda: states(seen) == [True, False])
    async with opened(path) as store:
        assert await texts(store, "s") == ["kept", "too"]


async def test_a_database_that_overwrites_an_open_one_is_left_as_it_is(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backup = path.parent.with_name("backup.db")
    seen: list[Event] = []
    async with opened(path, seen) as store:
        made = await create(store, "s", "early")
        await asyncio.to_thread(back_up, path, backup)
        await talk(store, made, *[_KILOBYTE] * 100)
        await until(lambda: is_quiet(path))
        await asyncio.to_thread(_overwrite, path, backup)
        await until(lambda: is_rescue_over(path, caplog))
    assert path.read_bytes() == backup.read_bytes()
    log = beside(path, "-wal")
    if log.exists() and log.stat().st_size:
        # Without a rescue copy, the lost database's log is kept, and is not applied to this one.
        assert not rescue_copies(path)
        refused = SqliteStore(path, clock=FrozenClock(), observer=seen.append)
        with pytest.raises(StoreUnavailable, match=r"move ruvd\.db-wal away"):
            await refused.open()
        await refused.close()
        log.unlink()
    async with opened(path) as store:
        assert await texts(store, "s") == ["early"]


async def test_no_empty_store_takes_the_place_of_one_that_was_rescued(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", "kept")
        await asyncio.to_thread(shutil.rmtree, path.parent)
        await until(lambda: bool(rescue_copies(path)))
    (rescue,) = rescue_copies(path)
    seen: list[Event] = []
    store = SqliteStore(path, clock=FrozenClock(), observer=seen.append)
    try:
        with pytest.raises(StoreUnavailable, match=f"rename {rescue} to ruvd.db"):
            await store.open()
        assert not path.exists()
        with pytest.raises(StoreUnavailable, match="move it away to begin with an empty store"):
            await create(store, "t")
        await asyncio.to_thread(rescue.rename, path)
        assert await texts(store, "s") == ["kept"]
        assert states(seen) == [False, True]
    finally:
        await store.close()


async def test_a_copy_is_not_opened_beside_the_log_of_another_database(path: Path) -> None:
    copy = path.parent.with_name("copy.db")
    async with opened(path) as store:
        await create(store, "s", "kept")
        await asyncio.to_thread(back_up, path, copy)
        log = beside(path, "-wal").read_bytes()
    copy.replace(path)
    beside(path, "-wal").write_bytes(log)
    before = path.read_bytes()
    store = SqliteStore(path, clock=FrozenClock(), observer=lambda event: None)
    with pytest.raises(StoreUnavailable, match=r"move ruvd\.db-wal away"):
        await store.open()
    await store.close()
    assert path.read_bytes() == before
    beside(path, "-wal").unlink()
    async with opened(path) as store:
        assert await texts(store, "s") == ["kept"]


async def test_a_rescue_copy_that_cannot_be_written_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ruvd.stores.sqlite.rescue._RETRY_SECONDS", 0.0)
    async with opened(path) as store:
        await create(store, "s", "kept")
        directory = path.parent
        await asyncio.to_thread(shutil.rmtree, directory)
        await asyncio.to_thread(directory.write_text, "a file is in the way")
        await until(lambda: "rescue copy failed" in caplog.messages)
        await asyncio.to_thread(directory.unlink)
        await until(lambda: bool(rescue_copies(path)))
    assert caplog.messages[0] == "store files lost"
    assert caplog.messages[-1] == "rescue copy written"
