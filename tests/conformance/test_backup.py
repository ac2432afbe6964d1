"""Backups of the SQLite store, taken while it is written to."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path

import pytest
from conversations import create, fork, ids, talk, texts
from fakes import FrozenClock
from tool_conversation import TOOL_EXCHANGE, said

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import Event
from ruvd.stores.sqlite.backup import back_up
from ruvd.stores.sqlite.schema import MIGRATIONS
from ruvd.stores.sqlite.store import SqliteStore

_MEGABYTE = "m" * 1_000_000
_DEADLINE_SECONDS = 30.0


def ignore(event: Event) -> None:
    """Ignores the event."""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, clock=FrozenClock(), observer=ignore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ruvd.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


def left_behind(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.glob(f"{target.name}*"))


def damage(path: Path) -> None:
    """Overwrites some pages in the middle."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16_384] = b"\xaa" * 16_384
    path.write_bytes(data)


async def test_a_commit_between_two_steps_neither_enters_the_copy_nor_restarts_it(
    source: Path, target: Path
) -> None:
    loop = asyncio.get_running_loop()
    steps: list[tuple[int, int]] = []
    async with opened(source) as store:
        latest = await create(store, "s", *[_MEGABYTE] * 5)

        async def one_more_turn() -> None:
            nonlocal latest
            latest = await talk(store, latest, f"during step {len(steps)}")

        def progress(done: int, total: int) -> None:
            steps.append((done, total))
            assert len(steps) < 100, "the copying starts over and over"
            asyncio.run_coroutine_threadsafe(one_more_turn(), loop).result(_DEADLINE_SECONDS)

        size = await asyncio.to_thread(back_up, source, target, progress=progress)
        assert await texts(store, "s", 5) == [f"during step {n + 1}" for n in range(len(steps))]
    assert len(steps) > 1
    assert steps == sorted(set(steps))
    assert steps[-1][0] == steps[-1][1]
    assert size == target.stat().st_size
    async with opened(target) as copy:
        found = await copy.get("s")
        assert found is not None
        assert (found.exchange_count, found.message_count) == (5, 10)
        assert await texts(copy, "s", 0) == [_MEGABYTE] * 5


async def test_copies_taken_during_writes_have_complete_turns_only(
    source: Path, tmp_path: Path
) -> None:
    copies = [tmp_path / f"copy{number}.db" for number in range(5)]
    async with opened(source) as store:
        made = await create(store, "s", "first")

        async def write() -> None:
            latest = made
            for number in count():
                latest = await talk(store, latest, f"turn {number}")
                await fork(store, latest, f"fork{number}", latest.exchange_count)

        writer = asyncio.create_task(write())
        for copy in copies:
            await asyncio.to_thread(back_up, source, copy)
        writer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writer
    for copy in copies:
        async with opened(copy) as store:
            for session_id in await ids(store):
                found = await store.get(session_id)
                assert found is not None
                exchanges = await store.exchanges(session_id, 0)
                assert len(exchanges) == found.exchange_count
                assert all(len(exchange) == 2 for exchange in exchanges)
                assert sum(map(len, exchanges)) == found.message_count


async def test_the_copy_is_one_private_file_that_can_be_read_without_writing(
    source: Path, target: Path
) -> None:
    async with opened(source) as store:
        await create(store, "s", "hello")
        await asyncio.to_thread(back_up, source, target)
        assert left_behind(target) == [target.name]
        assert target.stat().st_mode & 0o777 == 0o600
    uri = f"{target.as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        assert db.execute("SELECT id FROM sessions").fetchall() == [("s",)]
    assert left_behind(target) == [target.name]


async def test_a_store_that_no_daemon_has_open_is_copied_too_and_opens_afterwards(
    source: Path, target: Path
) -> None:
    async with opened(source) as store:
        await create(store, "s", "hello")
    before = source.read_bytes()
    await asyncio.to_thread(back_up, source, target)
    assert source.read_bytes() == before
    for path in (source, target):
        async with opened(path) as store:
            assert await texts(store, "s") == ["hello"]


async def test_tool_calls_and_reasoning_are_in_the_copy(source: Path, target: Path) -> None:
    async with opened(source) as store:
        await store.commit(said(await create(store), *TOOL_EXCHANGE))
        await asyncio.to_thread(back_up, source, target)
    async with opened(target) as copy:
        assert list(await copy.exchanges("s", 0)) == [TOOL_EXCHANGE]


async def test_a_store_of_an_older_ruvd_is_copied_as_it_is_and_opens_afterwards(
    source: Path, target: Path
) -> None:
    source.parent.mkdir()
    for number, statements in enumerate(MIGRATIONS[:-1], 1):
        with closing(sqlite3.connect(source, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
    await asyncio.to_thread(back_up, source, target)
    for path in (source, target):
        with closing(sqlite3.connect(path)) as db:
            version = db.execute("PRAGMA user_version").fetchone()
        assert version == (len(MIGRATIONS) - 1,)
    async with opened(target) as copy:
        await create(copy, "s", "hello")
        assert await texts(copy, "s") == ["hello"]


async def test_an_existing_file_is_replaced_only_on_request(source: Path, target: Path) -> None:
    target.write_text("precious")
    async with opened(source) as store:
        await create(store, "s", "hello")
        with pytest.raises(FileExistsError, match="exists"):
            await asyncio.to_thread(back_up, source, target)
        assert target.read_text() == "precious"
        await asyncio.to_thread(back_up, source, target, overwrite=True)
        with pytest.raises(FileExistsError, match="the store itself"):
            await asyncio.to_thread(back_up, source, source, overwrite=True)
    async with opened(target) as store:
        assert await ids(store) == ["s"]


async def test_a_store_that_is_in_use_is_never_replaced(source: Path, target: Path) -> None:
    async with opened(source) as store, opened(target) as other:
        await create(store, "s", "hello")
        await create(other, "other", "hello")
        with pytest.raises(FileExistsError, match="in use"):
            await asyncio.to_thread(back_up, source, target, overwrite=True)
        assert await ids(other) == ["other"]


async def test_the_remains_of_a_killed_backup_are_replaced(source: Path, target: Path) -> None:
    for suffix in (".part", ".part-wal", ".part-shm", ".part-journal"):
        Path(f"{target}{suffix}").write_bytes(b"half a backup")
    async with opened(source) as store:
        await create(store, "s", "hello")
        await asyncio.to_thread(back_up, source, target)
    assert left_behind(target) == [target.name]
    async with opened(target) as copy:
        assert await texts(copy, "s") == ["hello"]


async def test_a_damaged_store_gives_no_copy(source: Path, target: Path) -> None:
    async with opened(source) as store:
        await create(store, "s", *["k" * 50_000] * 10)
    await asyncio.to_thread(damage, source)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await asyncio.to_thread(back_up, source, target)
    assert left_behind(target) == []


def test_a_file_that_is_not_a_store_is_not_copied(tmp_path: Path, target: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        back_up(tmp_path / "nothing.db", target)
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE things (name TEXT)")
    with pytest.raises(StoreUnavailable, match="another program"):
        back_up(foreign, target)
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(StoreUnavailable, match="is empty"):
        back_up(empty, target)
    text = tmp_path / "text.db"
    text.write_text("no database at all, but a text that is long enough\n" * 100)
    with pytest.raises(StoreUnavailable, match="no database"):
        back_up(text, target)
    assert left_behind(target) == []


async def test_a_copy_into_a_missing_directory_raises_file_not_found(
    source: Path, tmp_path: Path
) -> None:
    async with opened(source) as store:
        await create(store, "s", "hello")
        with pytest.raises(FileNotFoundError):
            await asyncio.to_thread(back_up, source, tmp_path / "nowhere" / "copy.db")
