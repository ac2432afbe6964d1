"""`ruvd migrate` copies all that a SQLite store has to PostgreSQL, and refuses to overwrite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from conversations import completed, create, fork, full_session, session, talk, turn
from fakes import FrozenClock
from postgres import Server

from ruvd.cli import run
from ruvd.cli.migration import Migration
from ruvd.core.model import IdempotencyRecord, Message, Role, Session, ToolCall
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Commit, Gone, Store
from ruvd.sealing.keys import KeyRing, OperatorKeys
from ruvd.stores.postgres.imports import ImportTarget
from ruvd.stores.postgres.store import PostgresStore
from ruvd.stores.sqlite.sealed_rows import SealedRows
from ruvd.stores.sqlite.snapshot import snapshot
from ruvd.stores.sqlite.store import SqliteStore

MIB = 1 << 20
NAMES = ("s", "fork", "deep", "early", "full", "orphan", "blue/s", "empty", "made", "old", "gone")
TOOL_EXCHANGE = (
    Message(Role.USER, "weather in \0 Bern? \N{SNOWMAN}"),
    Message(
        Role.ASSISTANT,
        "",
        (ToolCall("call", "lookup", '{"a": "\\u0000"}', '{"signature": "x"}'),),
        reasoning="think \0",
        engine_data='{"id": 1}',
    ),
    Message(Role.TOOL, "", tool_call_id="call"),
    Message(Role.ASSISTANT, "\\N sunny\t\n\\."),
)


def _ignore(event: Event) -> None:
    """Ignores the event."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "source" / "ruvd.db"


@pytest.fixture
def url(postgres: Server) -> str:
    schema = postgres.new_schema().partition("search_path=")[2].rstrip("'")
    return f"postgresql://ruvd@/postgres?host={postgres.directory}&options=-csearch_path%3D{schema}"


@asynccontextmanager
async def sqlite(
    path: Path, *, key: bytes | None = None, shift: float = 0.0
) -> AsyncIterator[SqliteStore]:
    sealing = SealedRows(OperatorKeys(KeyRing({"k": key}))) if key else None
    clock = FrozenClock(shift=shift)
    store = SqliteStore(path, clock=clock, observer=_ignore, sealing=sealing)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def postgresql(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, clock=FrozenClock(), observer=_ignore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def say(store: Store, before: Session, *messages: Message) -> Session:
    after = replace(
        before,
        message_count=before.message_count + len(messages),
        exchange_count=before.exchange_count + 1,
        size_bytes=before.size_bytes + sum(each.size_bytes for each in messages),
    )
    await store.commit(Commit(after, [(before.exchange_count, each) for each in messages]))
    return after


async def fill(store: Store) -> None:
    """Makes sessions with all kinds of content, of which `gone` and `parent` have gone."""
    made = await create(store, "s", "one", labels={"team": "\0bern", "quote": "'"})
    commit = completed(turn(made, "two"), "r\0", "c")
    await store.commit(commit)
    made = await say(store, commit.session, *TOOL_EXCHANGE)
    # The record of a turn whose answer is not the last message of the history any more.
    commit = completed(turn(made, "three"), "", "c2")
    await store.commit(commit)
    child = await talk(store, await fork(store, commit.session, "fork", 3), "of the fork")
    await talk(store, await fork(store, child, "deep", 4), "of the fork's fork")
    await fork(store, child, "early", 1)
    await store.commit(Commit(full_session(), create=True))
    parent = await create(store, "parent", "shared with an orphan", "not shared")
    await talk(store, await fork(store, parent, "orphan", 1), "of the orphan")
    await store.end("parent")
    commit = completed(turn(await create(store, "blue/s"), "of a tenant"), "blue\nr", "blue/c")
    await store.commit(commit)
    await create(store, "empty", now=3.5)
    record = IdempotencyRecord("creation", b"digest")
    await store.commit(Commit(session("made"), create=True, idempotency_record=record))
    await create(store, "old", "expired", now=-500.0)
    await create(store, "gone")
    await store.end("gone", gone=Gone.EVICTED, now=5.0)


async def everything(store: Store) -> list[object]:
    found: list[object] = []
    for name in NAMES:
        found += [await store.get(name), list(await store.exchanges(name, 0))]
        found += [await store.messages(name, 1, 1000, MIB), await store.gone(name, 6.0)]
        found += [await store.size_at(name, 2)]
    for name, request in (("s", "r\0"), ("blue/s", "blue\nr"), ("made", "creation")):
        found.append(await store.idempotency_record(name, request))
    found += [await store.completion(name) for name in ("c", "c2", "blue/c", "none")]
    found += [await store.created_by("creation"), await store.created_by("r\0")]
    listed, _ = await store.list(after=0, limit=99, labels={}, now=-1e9)
    labelled, _ = await store.list(after=0, limit=99, labels={"team": "\0bern"}, now=0.0)
    return [*found, listed, labelled, await store.usage("blue"), await store.counts(0.0)]


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(query.encode()).fetchall()


def migrate(path: Path, url: str, *flags: str) -> int:
    try:
        return run(["migrate", "--from", f"sqlite:{path}", "--to", url, *flags])
    except SystemExit as end:
        return int(end.code or 0)


async def filled(path: Path, key: bytes | None = None) -> list[object]:
    async with sqlite(path, key=key) as store:
        await fill(store)
        return await everything(store)


async def moved(url: str) -> list[object]:
    async with postgresql(url) as store:
        return await everything(store)


def test_a_migrated_store_answers_as_the_source_does(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = asyncio.run(filled(path))
    before = path.read_bytes()
    assert migrate(path, url) == 0
    assert path.read_bytes() == before
    assert not [each for each in path.parent.iterdir() if "migration" in each.name]
    assert "10 sessions copied, 0 were there already" in capsys.readouterr().out
    assert asyncio.run(moved(url)) == expected


def test_shared_histories_stay_shared_unless_their_session_has_ended(path: Path, url: str) -> None:
    asyncio.run(filled(path))
    assert migrate(path, url) == 0
    query = "SELECT s.id, count(m) FROM sessions s LEFT JOIN messages m ON branch = pk GROUP BY 1"
    stored = {row[0]: row[1] for row in rows(url, query)}
    assert (stored["s"], stored["fork"], stored["deep"], stored["early"]) == (10, 2, 2, 0)
    assert stored["orphan"] == 4

    async def end_the_owner() -> list[Message]:
        async with postgresql(url) as store:
            await store.end("s")
            while await store.expire(-1e9, ()):
                pass
            return [each[0] for each in await store.exchanges("deep", 0)]

    assert len(asyncio.run(end_the_owner())) == 5


def test_an_encrypted_store_is_migrated_with_its_key_file(
    path: Path, url: str, tmp_path: Path
) -> None:
    expected = asyncio.run(filled(path, b"k" * 32))
    assert migrate(path, url) == 1
    keys = tmp_path / "keys"
    keys.write_text(f"k:{(b'k' * 32).hex()}\n")
    keys.chmod(0o600)
    assert migrate(path, url, "--encryption-key-file", str(keys)) == 0
    assert asyncio.run(moved(url)) == expected


def test_an_interrupted_migration_goes_on(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def many() -> None:
        async with sqlite(path) as store:
            for number in range(120):
                await create(store, f"s{number}", "hello")
            await fork(store, session("s7", message_count=2, exchange_count=1), "late", 1)

    asyncio.run(many())

    def interrupt(step: str, done: int, total: int) -> None:
        if step == "copying":
            raise KeyboardInterrupt

    target = ImportTarget(url)
    with asyncio.Runner() as runner, snapshot(path, directory=path.parent) as content:
        runner.run(target.open(may_write=True))
        with pytest.raises(KeyboardInterrupt):
            Migration(content, target, runner, interrupt).run(dry_run=False)
        runner.run(target.close())
    assert 0 < len(rows(url, "SELECT id FROM sessions")) < 121
    assert migrate(path, url) == 0
    assert "71 sessions copied, 50 were there already" in capsys.readouterr().out
    assert len(rows(url, "SELECT id FROM sessions")) == 121
    assert migrate(path, url) == 0
    assert "0 sessions copied, 121 were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE messages SET content = 'other' WHERE position = 1",
        "UPDATE sessions SET model = 'other' WHERE id = 's'",
        "UPDATE receipts SET digest = 'other' WHERE completion_id = 'c'",
        "DELETE FROM receipts WHERE completion_id = 'c2'",
        "DELETE FROM messages WHERE position = 3",
    ],
)
def test_a_target_that_differs_is_refused_and_named(
    path: Path, url: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(filled(path))
    assert migrate(path, url) == 0
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("DELETE FROM sessions WHERE id = 'empty'")
        assert db.execute(change.encode()).rowcount
    assert migrate(path, url) == 1
    assert "'s' of the tenant 'default'" in capsys.readouterr().err
    assert not rows(url, "SELECT id FROM sessions WHERE id = 'empty'")


def test_a_source_that_a_daemon_has_open_needs_a_flag(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def while_open() -> None:
        async with sqlite(path) as store:
            await fill(store)
            assert await asyncio.to_thread(migrate, path, url) == 1
            assert "--while-serving" in capsys.readouterr().err
            assert await asyncio.to_thread(migrate, path, url, "--dry-run") == 0
            assert "10 sessions would be copied" in capsys.readouterr().out
            assert rows(url, "SELECT to_regclass('sessions')") == [(None,)]
            assert await asyncio.to_thread(migrate, path, url, "--while-serving") == 0
            await talk(store, await create(store, "later"), "the store goes on")

    asyncio.run(while_open())


def test_a_target_that_a_daemon_has_open_is_refused(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def while_open() -> int:
        async with postgresql(url):
            return await asyncio.to_thread(migrate, path, url)

    asyncio.run(filled(path))
    assert asyncio.run(while_open()) == 1
    assert "a daemon has the target open" in capsys.readouterr().err


def test_a_damaged_session_is_named_and_the_others_are_copied(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(filled(path))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE messages SET content = 'x' WHERE content = 'of a tenant'")
    assert migrate(path, url) == 1
    assert "'s' is damaged" in capsys.readouterr().err
    assert len(rows(url, "SELECT id FROM sessions")) == 9


def test_times_are_those_of_the_wall_clock(path: Path, url: str) -> None:
    async def times() -> Session | None:
        async with sqlite(path, shift=3600.2) as store:
            await create(store, "s", now=1000.0)
        assert await asyncio.to_thread(migrate, path, url) == 0
        async with postgresql(url) as target:
            return await target.get("s")

    found = asyncio.run(times())
    assert found is not None
    assert (found.create_time, found.last_used_time) == (4600.0, 4600.0)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("memory", "postgresql://u@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("sqlite:a.db", "sqlite:b.db"),
        ("sqlite:a.db", "postgresql://u:secret@h/d"),
    ],
)
def test_wrong_stores_are_refused_before_anything_is_read(source: str, target: str) -> None:
    assert run(["migrate", "--from", source, "--to", target]) == 2
