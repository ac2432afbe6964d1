"""The promises of the SQLite store alone: its file, lock, errors, cost and cache."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversations import (
    completed,
    create,
    evicted,
    finished,
    fork,
    full_session,
    ids,
    session,
    talk,
    texts,
    turn,
)
from fakes import FrozenClock
from tool_conversation import TOOL_EXCHANGE, said

from ruvd.core.errors import SessionNotFound, StoreUnavailable
from ruvd.core.model import IdempotencyRecord, Message, Role
from ruvd.core.ports.events import Event, StoreBatch, StoreStateChanged
from ruvd.core.ports.store import (
    DEFAULT_TOMBSTONES,
    Commit,
    StoreCounts,
    StoreLocked,
    StoreUsage,
    TurnSnapshot,
)
from ruvd.stores.sqlite import history, reads, writes
from ruvd.stores.sqlite.access import WriterAccess
from ruvd.stores.sqlite.database import DatabaseFile, Durability
from ruvd.stores.sqlite.rows import figures_column, session_columns
from ruvd.stores.sqlite.schema import MIGRATIONS, migrate
from ruvd.stores.sqlite.session_cache import SessionCache
from ruvd.stores.sqlite.store import SqliteStore
from ruvd.stores.sqlite.tombstones import Tombstones
from ruvd.stores.sqlite.worker import SqliteWorker

_KILOBYTE = "k" * 1024
TOMBSTONES = Tombstones(DEFAULT_TOMBSTONES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ruvd" / "ruvd.db"


@asynccontextmanager
async def opened(path: Path, seen: list[Event] | None = None) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, clock=FrozenClock(), observer=ignore if seen is None else seen.append)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def query(path: Path, statement: str) -> tuple[Any, ...]:
    """Returns the first row of a query on another connection to the open database."""

    def first() -> tuple[Any, ...]:
        with closing(sqlite3.connect(path)) as db:
            row: tuple[Any, ...] = db.execute(statement).fetchone()
            return row

    return await asyncio.to_thread(first)


async def until(
    condition: Callable[[], Awaitable[bool]], *, deadline_seconds: float = 30.0
) -> None:
    end = time.monotonic() + deadline_seconds
    while not await condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def ignore(event: Event) -> None:
    """Ignores the event."""


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def file_bytes(path: Path) -> int:
    return path.stat().st_size


def disk_bytes(path: Path) -> int:
    """The size of all files of the store but its reserve for a full disk."""
    files = (each for each in path.parent.iterdir() if each.suffix != ".reserve")
    return sum(each.stat().st_size for each in files)


def states(seen: list[Event]) -> list[bool]:
    return [event.up for event in seen if isinstance(event, StoreStateChanged)]


# --- the file -----------------------------------------------------------------------------------


async def test_everything_survives_a_close(path: Path) -> None:
    async with opened(path) as store:
        made = await create(store, "a", "0", "1", idle=50, labels={"x": "1"})
        await create(store, "b", now=1)
        await create(store, "c", now=2)
        await store.touch("a", 3)
        commit = completed(turn(await fork(store, made, "f", 1, now=9), "own"), "r", "c-1")
        await store.commit(commit)
    async with opened(path) as store:
        assert await texts(store, "f") == ["0", "own"]
        assert await store.completion("c-1") == ("f", commit.idempotency_record)
        assert [s.id for s in (await store.list(after=0, limit=9, labels={"x": "1"}, now=0))[0]]
        creation = Commit(session("d", now=4), create=True, max_sessions=4, now=4)
        assert list(await store.commit(creation)) == evicted("b")
        assert list(await store.expire(53, ())) == ["a"]
        assert await ids(store) == ["c", "f", "d"]


async def test_tool_calls_and_reasoning_survive_a_close(path: Path) -> None:
    async with opened(path) as store:
        calls = said(await create(store), *TOOL_EXCHANGE[:2])
        calls = replace(
            calls,
            idempotency_record=IdempotencyRecord("r", b"d", "c", 3, finished(TOOL_EXCHANGE[1])),
        )
        await store.commit(calls)
    async with opened(path) as store:
        assert await store.completion("c") == ("s", calls.idempotency_record)
        await store.commit(said(calls.session, *TOOL_EXCHANGE[2:]))
    async with opened(path) as store:
        assert list(await store.exchanges("s", 0)) == [TOOL_EXCHANGE]
        plain = "SELECT COUNT(*) FROM messages WHERE extra IS NULL AND role = 'user'"
        assert await query(path, plain) == (1,), "a message of text alone must need no extra"


def store_of_schema_1(path: Path) -> None:
    """Writes a database as the first ruvd did: two exchanges, a fork, two idempotency records."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        full = replace(full_session(), message_count=4, exchange_count=2, size_bytes=12)
        child = replace(full, id="child", parent_id="full", message_count=2, exchange_count=1)
        places = ", ".join("?" * 23)
        for each, end_bytes in ((full, 12), (child, 6)):
            row = session_columns(each, end_bytes)[:-2]
            db.execute(f"INSERT INTO sessions VALUES (NULL, {places})", row)  # noqa: S608
        db.execute("UPDATE totals SET sessions = 2")
        db.execute("INSERT INTO forks VALUES (2, 1, 2, 0)")
        for place, content in enumerate(("one", "\N{SNOWMAN}", "two", "re2")):
            row = (1, place // 2, place, 3 * (place + 1), ("user", "assistant")[place % 2], content)
            db.execute("INSERT INTO messages VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)
        figures = figures_column(finished(Message(Role.USER)), with_message=False)
        elsewhere = figures[:-1] + ', "message": ["assistant", "elsewhere"]}'
        for number, (message, column) in enumerate(((4, figures), (None, elsewhere))):
            kept = (1, f"r{number}", 0, b"d", f"c{number}", 7, message, column)
            db.execute("INSERT INTO receipts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", kept)


async def test_a_database_of_schema_1_is_migrated_and_keeps_everything(
    path: Path,
) -> None:
    await asyncio.to_thread(store_of_schema_1, path)
    one = (Message(Role.USER, "one"), Message(Role.ASSISTANT, "\N{SNOWMAN}"))
    two = (Message(Role.USER, "two"), Message(Role.ASSISTANT, "re2"))
    expected = finished(two[1])
    async with opened(path) as store:
        full, child = await store.get("full"), await store.get("child")
        assert full == replace(full_session(), message_count=4, exchange_count=2, size_bytes=12)
        assert child is not None
        assert list(await store.exchanges("full", 0)) == [one, two]
        assert list(await store.exchanges("child", 0)) == [one]
        assert await store.idempotency_record("full", "r0") == IdempotencyRecord(
            "r0", b"d", "c0", 7, expected
        )
        expected = replace(expected, message=Message(Role.ASSISTANT, "elsewhere"))
        assert await store.completion("c1") == (
            "full",
            IdempotencyRecord("r1", b"d", "c1", 7, expected),
        )
        await store.commit(said(child, *TOOL_EXCHANGE))
    async with opened(path) as store:
        assert list(await store.exchanges("child", 0)) == [one, TOOL_EXCHANGE]
        assert list(await store.exchanges("full", 0)) == [one, two]
        assert await query(path, "PRAGMA user_version") == (len(MIGRATIONS),)


def test_a_database_that_has_to_be_migrated_is_not_read_where_it_cannot_be(path: Path) -> None:
    store_of_schema_1(path)
    with pytest.raises(StoreUnavailable, match="make it writable"):
        DatabaseFile(path, "normal").open_reader()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    await asyncio.to_thread(store_of_schema_1, path)
    broken = (*MIGRATIONS[1], "ALTER TABLE nowhere ADD COLUMN extra TEXT")

    def fail() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            migrate(db, 1, (MIGRATIONS[0], broken))

    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        await asyncio.to_thread(fail)
    assert await query(path, "PRAGMA user_version") == (1,)
    async with opened(path) as store:
        assert await texts(store, "full") == ["one", "two"]


@pytest.mark.parametrize(("durability", "synchronous"), [("normal", 1), ("full", 2)])
def test_the_durability_reaches_the_connection_that_commits(
    path: Path, durability: Durability, synchronous: int
) -> None:
    file = DatabaseFile(path, durability)
    db = file.open_writer()
    assert db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    file.close_writer(db)
    file.release()


async def test_only_the_owner_can_read_the_files(path: Path) -> None:
    def modes() -> dict[str, str]:
        return {each.name: oct(each.stat().st_mode & 0o777) for each in path.parent.iterdir()}

    before = os.umask(0)
    try:
        async with opened(path) as store:
            await create(store)
            assert await asyncio.to_thread(modes) == {
                "ruvd.db": "0o600",
                "ruvd.db-wal": "0o600",
                "ruvd.db-shm": "0o600",
                "ruvd.db.lock": "0o600",
                "ruvd.db.reserve": "0o600",
            }
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


async def test_closing_completes_the_pending_writes_and_may_be_repeated(path: Path) -> None:
    store = SqliteStore(path, clock=FrozenClock(), observer=ignore)
    await store.open()
    writes = [asyncio.ensure_future(create(store, f"s{number}")) for number in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get("s0")
    async with opened(path) as store:
        assert len(await ids(store)) == 10


async def test_a_store_that_is_not_open_is_unavailable(path: Path) -> None:
    store = SqliteStore(path, clock=FrozenClock(), observer=ignore)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get("s")
    await store.close()


async def test_a_database_of_a_newer_ruvd_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path) as store:
        await create(store)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    before = content(path)
    with pytest.raises(StoreUnavailable, match=r"ruvd\.db was written by a newer ruvd"):
        async with opened(path):
            pass
    assert content(path) == before


async def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    before = content(path)
    with pytest.raises(StoreUnavailable, match="another program"):
        async with opened(path):
            pass
    assert content(path) == before


# --- the lock -----------------------------------------------------------------------------------

_HOLDER = """
import asyncio, sys
from pathlib import Path
from dataclasses import replace
from ruvd.core.model import Message, Role, Session
from ruvd.core.ports.store import Commit
from ruvd.server.system_clock import SystemClock
from ruvd.stores.sqlite.store import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]), clock=SystemClock(""), observer=lambda event: None)
    await store.open()
    print("open", flush=True)

    async def talk(name):
        session = Session(name, 0.0, 0.0, 1e9)
        await store.commit(Commit(session, create=True))
        for number in range(int(sys.argv[2])):
            session = replace(session, message_count=number + 1, exchange_count=number + 1)
            message = Message(Role.USER, str(number))
            await store.commit(Commit(session, [(number, message)]))
            print(name, number, flush=True)

    await asyncio.gather(*(talk(f"s{number}") for number in range(4)))
    await asyncio.Event().wait()

asyncio.run(main())
"""


def hold(path: Path, turns: int) -> subprocess.Popen[str]:
    """Starts a process that opens the store, and returns once it has."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path), str(turns)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    return holder


def kill(holder: subprocess.Popen[str]) -> str:
    """Sends SIGKILL and returns the output that had not been read yet."""
    holder.send_signal(signal.SIGKILL)
    said, _ = holder.communicate()
    return said


async def test_a_second_store_in_the_same_process_is_refused(path: Path) -> None:
    async with opened(path) as store:
        with pytest.raises(StoreLocked, match=rf"process {os.getpid()}, by .*ruvd\.db\.lock"):
            async with opened(path):
                pass
        await create(store)
    async with opened(path) as store:
        assert await ids(store) == ["s"]


async def test_the_lock_excludes_other_processes_until_its_holder_ends(path: Path) -> None:
    holder = await asyncio.to_thread(hold, path, 0)
    try:
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            async with opened(path):
                pass
    finally:
        await asyncio.to_thread(kill, holder)
    async with opened(path) as store:
        assert len(await ids(store)) <= 4


async def test_kill_9_loses_no_commit_that_had_returned(path: Path) -> None:
    holder = await asyncio.to_thread(hold, path, 1_000_000)

    def read_then_kill() -> list[str]:
        assert holder.stdout is not None
        acknowledged = [holder.stdout.readline() for _ in range(400)]
        # The last line may be incomplete; it is left out.
        return acknowledged + kill(holder).splitlines()[:-1]

    returned = [line.split() for line in await asyncio.to_thread(read_then_kill)]
    async with opened(path) as store:
        for name in ("s0", "s1", "s2", "s3"):
            expected = [number for session_id, number in returned if session_id == name]
            assert expected
            stored = await texts(store, name)
            assert stored[: len(expected)] == expected
            found = await store.get(name)
            assert found is not None
            assert found.message_count == len(stored)


# --- errors -------------------------------------------------------------------------------------


async def test_a_bug_in_idle_work_is_logged_and_ends_neither_the_thread_nor_the_store(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, faults = DatabaseFile(path, "normal"), list[str | None]()
    failed = threading.Event()

    def idle(_: sqlite3.Connection) -> bool:
        failed.set()
        raise KeyError("a bug")

    worker = SqliteWorker(
        "test",
        WriterAccess(file, file.open_writer),
        faults.append,
        begin="BEGIN IMMEDIATE",
        idle=idle,
    )
    worker.start()
    cache = SessionCache(max_bytes=0, max_session_bytes=0)

    async def create(name: str) -> None:
        change = Commit(session(name), create=True)
        await worker.run(lambda db: writes.commit(db, cache, TOMBSTONES, change))

    try:
        for name in ("a", "b"):
            await create(name)
            assert await asyncio.to_thread(failed.wait, 30)
            failed.clear()
    finally:
        await worker.close()
    assert set(faults) == {None}
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


async def test_a_full_disk_fails_the_batch_and_is_recovered_from(path: Path) -> None:
    file, faults = DatabaseFile(path, "normal"), list[str | None]()
    access = WriterAccess(file, file.open_writer)
    worker = SqliteWorker("test", access, faults.append, begin="BEGIN IMMEDIATE")
    worker.start()
    cache = SessionCache(max_bytes=0, max_session_bytes=0)
    made, other = session("s"), session("other")

    def fill(db: sqlite3.Connection) -> None:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    started, released = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        started.set()
        released.wait(30)

    def commit(change: Commit) -> Awaitable[object]:
        return worker.run(lambda db: writes.commit(db, cache, TOMBSTONES, change))

    try:
        await commit(Commit(made, create=True))
        await worker.run(fill)
        # Both are queued while the worker is busy, so that they share a transaction.
        busy = asyncio.ensure_future(worker.run(wait))
        await asyncio.to_thread(started.wait, 30)
        changes = (Commit(other, create=True), turn(made, _KILOBYTE * 100))
        writing = [asyncio.ensure_future(commit(change)) for change in changes]
        await asyncio.sleep(0)
        released.set()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        await busy
        assert faults[:3] == [None] * 3
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2
        assert "disk is full: free some space" in str(outcomes[1])
        assert faults[3:] == [str(outcomes[1])]
        assert await worker.run(lambda db: reads.get(db, "s")) == made
        assert await worker.run(lambda db: reads.get(db, "other")) is None
        await commit(turn(made, "more"))
        assert len(await worker.run(lambda db: history.exchanges(db, "s", 0))) == 1
        assert faults[4:] == [None] * 4
    finally:
        await worker.close()
        file.release()


async def test_a_damaged_file_is_never_touched_and_may_be_restored(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", "kept")
    good = content(path)
    damaged = b"not a database at all" * 500
    overwrite(path, damaged)
    seen: list[Event] = []
    store = SqliteStore(path, clock=FrozenClock(), observer=seen.append)
    try:
        with pytest.raises(StoreUnavailable, match="restore it from a backup"):
            await store.open()
        with pytest.raises(StoreUnavailable, match="restore it from a backup"):
            await store.get("s")
        with pytest.raises(StoreUnavailable, match="restore it from a backup"):
            await create(store, "t")
        assert content(path) == damaged
        assert states(seen) == [False]
        overwrite(path, good)
        assert await texts(store, "s") == ["kept"]
        assert states(seen) == [False, True]
    finally:
        await store.close()


async def test_damage_inside_the_file_is_reported_and_not_repaired(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", *(_KILOBYTE for _ in range(100)))
    good = content(path)
    # The header and the schema are intact; every later page is damaged.
    overwrite(path, good[:4096] + b"\xff" * (len(good) - 4096))
    store = SqliteStore(path, clock=FrozenClock(), observer=ignore)
    try:
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.open()
        overwrite(path, good)
        assert len(await texts(store, "s")) == 100
    finally:
        await store.close()


async def test_another_programs_lock_makes_the_store_unavailable_until_it_is_released(
    path: Path,
) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        made = await create(store, "s", "kept")
        foreign = sqlite3.connect(path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another program holds a lock"):
            await store.commit(turn(made, "lost"))
        foreign.close()
        await talk(store, made, "more")
        assert await texts(store, "s") == ["kept", "more"]
        assert states(seen) == [True, False, True]


async def test_a_directory_that_cannot_be_made_is_retried(tmp_path: Path) -> None:
    blocker = tmp_path / "state"
    blocker.write_text("")
    store = SqliteStore(blocker / "ruvd.db", clock=FrozenClock(), observer=ignore)
    try:
        with pytest.raises(StoreUnavailable, match="ruvd needs to write there"):
            await store.open()
        blocker.unlink()
        await create(store)
        assert await ids(store) == ["s"]
    finally:
        await store.close()


async def test_an_invalid_argument_fails_only_its_own_caller(path: Path) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        await create(store, "s", "0")
        wrong = replace(session("wrong"), message_count=99)
        outcomes = await asyncio.gather(
            store.fork(Commit(wrong, create=True), "s"),
            store.touch("s", object()),  # type: ignore[arg-type]
            create(store, "right"),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], ValueError)
        assert isinstance(outcomes[1], sqlite3.Error)
        assert await ids(store) == ["s", "right"]
        assert states(seen) == [True]


# --- cost ---------------------------------------------------------------------------------------


async def test_concurrent_writes_share_transactions(path: Path) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        await asyncio.gather(*(create(store, f"s{number}") for number in range(256)))
        transactions = [event.writes for event in seen if isinstance(event, StoreBatch)]
        assert sum(transactions) == 256
        assert len(transactions) < 30
        assert len(await ids(store)) == 256


async def test_a_thousand_forks_of_a_megabyte_take_less_than_another_megabyte(path: Path) -> None:
    async with opened(path) as store:
        parent = await create(store, "p", *(_KILOBYTE for _ in range(512)))
        before = await asyncio.to_thread(disk_bytes, path)
        assert before > 1024 * 1024
        await asyncio.gather(*(fork(store, parent, f"f{n}", 512 - n % 2) for n in range(1_000)))
        assert len(await store.exchanges("f999", 0)) == 511
    assert file_bytes(path) < before + 1024 * 1024


async def test_a_window_costs_the_same_however_long_the_history(path: Path) -> None:
    def steps(name: str, turns: int) -> int:
        taken = []

        def step() -> None:
            taken.append(1)

        with closing(sqlite3.connect(path)) as db:
            db.set_progress_handler(step, 1)
            assert len(history.exchanges(db, name, turns - 3)) == 3
            assert history.size_at(db, name, turns - 3) == (turns - 3, turns - 3)
        return len(taken)

    async with opened(path) as store:
        for name, turns in (("short", 20), ("long", 2_000)):
            made = session(name)
            said = [(number, Message(Role.USER, "x")) for number in range(turns)]
            made = replace(made, message_count=turns, exchange_count=turns)
            await store.commit(Commit(made, said, create=True))
            await fork(store, made, f"{name}-fork", turns)
        short = await asyncio.to_thread(steps, "short-fork", 20)
        assert await asyncio.to_thread(steps, "long-fork", 2_000) < short * 1.2


async def test_the_file_shrinks_when_sessions_end(path: Path) -> None:
    async with opened(path) as store:
        parent = await create(store, "p", *(_KILOBYTE for _ in range(1_000)))
        await asyncio.gather(
            *(create(store, f"s{n}", *(_KILOBYTE for _ in range(100))) for n in range(40))
        )
        await fork(store, parent, "f", 10)
        full = await asyncio.to_thread(disk_bytes, path)
        assert full > 8 * 1024 * 1024
        for n in range(40):
            await store.end(f"s{n}")
        await store.end("p")

        async def shrunk() -> bool:
            return await asyncio.to_thread(file_bytes, path) < 2 * 1024 * 1024

        await until(shrunk)
        assert await texts(store, "f") == [_KILOBYTE] * 10
        await store.end("f")

        async def empty() -> bool:
            rows = await query(
                path,
                "SELECT (SELECT COUNT(*) FROM messages) + (SELECT COUNT(*) FROM receipts)"
                " + (SELECT COUNT(*) FROM forks) + (SELECT COUNT(*) FROM garbage)",
            )
            return rows == (0,)

        await until(empty)
        assert await store.counts(0) == StoreCounts(0, 0, 0)
    # The last connection has deleted the log.
    assert file_bytes(path) == disk_bytes(path) - file_bytes(path.with_name("ruvd.db.lock"))
    assert file_bytes(path) < 2 * 1024 * 1024


async def test_the_log_stays_bounded_under_load(path: Path) -> None:
    async with opened(path) as store:
        made = await create(store)
        for _ in range(20):
            made = await talk(store, made, _KILOBYTE * 512)
            await store.exchanges("s", made.exchange_count - 1)
        wal = path.with_name("ruvd.db-wal")
        assert await asyncio.to_thread(lambda: wal.stat().st_size) < 12 * 1024 * 1024


# --- the session cache -------------------------------------------------------------


async def test_a_turn_in_a_cached_session_begins_at_once_unless_a_write_is_pending(
    path: Path,
) -> None:
    async with opened(path) as store:
        made = await create(store, "s", "a")
        begins = store.begin_turn("s", "", 1)
        with pytest.raises(StopIteration) as at_once:
            begins.send(None)
        assert at_once.value.value.session == replace(made, last_used_time=1)
        ending = asyncio.create_task(store.end("s"))
        await asyncio.sleep(0)
        assert await store.begin_turn("s", "", 1) == TurnSnapshot(usage=StoreUsage())
        assert await ending


async def test_a_turn_with_a_request_id_finds_its_record_in_the_file(path: Path) -> None:
    async with opened(path) as store:
        commit = completed(turn(await create(store, "s"), "a"), "r", "c")
        await store.commit(commit)
        assert (await store.begin_turn("s", "r", 1)).idempotency_record == commit.idempotency_record


async def test_only_operations_that_change_something_count_as_writes(path: Path) -> None:
    seen: list[Event] = []
    async with opened(path, seen) as store:
        await create(store, "s", "a")
        await store.begin_turn("s", "", 1)
        seen.clear()
        # They are queued behind a write, so that the thread runs them.
        await asyncio.gather(store.end("none"), *(store.begin_turn("s", "", 1) for _ in range(9)))
        assert not [event for event in seen if isinstance(event, StoreBatch)]
        await asyncio.gather(store.end("none"), store.touch("s", 2))
        assert [event for event in seen if isinstance(event, StoreBatch)] == [StoreBatch(1)]


async def test_a_turn_is_not_added_to_another_state_of_its_session(path: Path) -> None:
    async with opened(path) as store:
        early = await create(store, "s", "a")
        late = turn(early, "b")
        for commit in (
            replace(late, session=replace(late.session, create_time=1.0)),
            turn(late.session, "c"),
        ):
            await store.touch("s", 0)  # the session is no longer cached
            with pytest.raises(SessionNotFound, match="another"):
                await store.commit(commit)
        assert await texts(store, "s") == ["a"]
