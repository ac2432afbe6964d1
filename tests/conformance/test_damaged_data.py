"""Damaged data in a readable SQLite store: it is found by its checksum, and never served."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversations import completed, create, fork, ids, talk, texts, turn
from fakes import FrozenClock
from tool_conversation import TOOL_EXCHANGE, said

from ruvd.core.errors import DataCorrupted, StoreUnavailable
from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event, StoredDataDamaged, StoreStateChanged
from ruvd.core.ports.store import Commit
from ruvd.stores.sqlite.store import SqliteStore

# Columns that hold sizes or a part of the id, and times that are updated for many sessions at once.
_NOT_COVERED = {
    "sessions": {"pk", "last_used_time", "expire_time", "tenant", "stored_bytes"},
    "messages": {"pk", "end_bytes"},
    "receipts": {"pk"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ruvd.db"


@asynccontextmanager
async def opened(path: Path, seen: list[Event] | None = None) -> AsyncIterator[SqliteStore]:
    seen = [] if seen is None else seen
    store = SqliteStore(path, clock=FrozenClock(), observer=seen.append)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def damaged(seen: list[Event]) -> list[str]:
    return [event.session_id for event in seen if isinstance(event, StoredDataDamaged)]


async def talk_about_money(path: Path) -> None:
    """Makes a store with the sessions `s`, its fork `f`, and `other`."""
    async with opened(path) as store:
        made = await create(store, "s", "hello", labels={"team": "bern"})
        commit = completed(turn(made, "It costs 1000 EUR."), "r", "c")
        session = replace(commit.session, system_prompt="Be brief.")
        await store.commit(replace(commit, session=session))
        await store.commit(said(commit.session, *TOOL_EXCHANGE))
        await fork(store, commit.session, "f", 1)
        await talk(store, await create(store, "other"), "1000 other things")


def execute(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement, values).rowcount == 1


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) > 0
    path.write_bytes(data.replace(old, new))


async def history(store: SqliteStore, session_id: str) -> object:
    return await store.exchanges(session_id, 0)


async def page_of(store: SqliteStore, session_id: str) -> object:
    return await store.messages(session_id, 0, 1000, 1 << 20)


async def begin(store: SqliteStore, session_id: str) -> object:
    return await store.begin_turn(session_id, "", 1)


async def record(store: SqliteStore, session_id: str) -> object:
    return await store.idempotency_record(session_id, "r")


async def completion(store: SqliteStore, session_id: str) -> object:
    return await store.completion("c")


@pytest.mark.parametrize("read", [history, page_of, begin, record, completion])
@pytest.mark.parametrize(
    ("old", "new"),
    [(b"s 1000 EUR", b"s 9000 EUR"), (b"s 1000 EUR", b"s 1000 \xff\xfeR")],
    ids=["another digit", "no UTF-8"],
)
async def test_a_message_whose_bytes_were_changed_is_not_served_and_others_are(
    path: Path, read: Callable[[SqliteStore, str], Awaitable[object]], old: bytes, new: bytes
) -> None:
    await talk_about_money(path)
    await asyncio.to_thread(rewrite, path, old, new)
    seen: list[Event] = []
    async with opened(path, seen) as store:
        for _ in range(2):
            with pytest.raises(DataCorrupted, match="session 's' is damaged") as caught:
                await read(store, "s")
            assert "EUR" not in str(caught.value)
        assert damaged(seen) == ["s"] * 2
        assert [event.up for event in seen if isinstance(event, StoreStateChanged)] == [True]
        assert await texts(store, "other") == ["1000 other things"]
        assert await ids(store) == ["s", "f", "other"]
        assert await store.end("s")
        assert await ids(store) == ["f", "other"]


def columns(path: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(path)) as db:
        return [
            (table, name, kind)
            for table in _NOT_COVERED
            for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")
        ]


def _changed(kind: str, found: Any) -> object:
    if kind == "TEXT":
        return "system" if found == "user" else f"{found or '{}'} "
    if kind == "BLOB":
        return found + b"\0"
    return 1 if found is None else found + 1


def change(path: Path, table: str, column: str, kind: str) -> None:
    """Changes a value in the row that the test reads, past SQLite's indices."""
    where = {"sessions": "id = 's'", "messages": "content LIKE '%1000 EUR%'", "receipts": "1"}
    with closing(sqlite3.connect(path)) as db, db:
        (pk, found) = db.execute(
            f"SELECT pk, {column} FROM {table} WHERE {where[table]} LIMIT 1"  # noqa: S608
        ).fetchone()
        db.execute(
            f"UPDATE {table} SET {column} = ? WHERE pk = ?",  # noqa: S608
            (_changed(kind, found), pk),
        )


async def test_no_column_that_holds_content_escapes_its_checksum(path: Path) -> None:
    await talk_about_money(path)
    good = path.read_bytes()
    escaped: dict[str, set[str]] = {table: set() for table in _NOT_COVERED}
    for table, column, kind in await asyncio.to_thread(columns, path):
        path.write_bytes(good)
        if column == "pk":
            escaped[table].add(column)
            continue
        await asyncio.to_thread(change, path, table, column, kind)
        async with opened(path) as store:
            found = [
                await asyncio.gather(
                    store.get(name), history(store, name), record(store, name),
                    return_exceptions=True,
                )
                for name in ("s", "s ")
            ]  # fmt: skip
            outcomes = [outcome for outcomes in found for outcome in outcomes]
            outcomes.append(await _outcome(store.completion("c")))
            if not any(isinstance(outcome, DataCorrupted) for outcome in outcomes):
                escaped[table].add(column)
    assert escaped == _NOT_COVERED


async def _outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except DataCorrupted as error:
        return error


async def test_a_session_whose_record_is_damaged_is_left_out_of_lists_and_can_be_deleted(
    path: Path,
) -> None:
    await talk_about_money(path)
    await asyncio.to_thread(execute, path, "UPDATE sessions SET labels = '{]' WHERE id = 's'")
    seen: list[Event] = []
    async with opened(path, seen) as store:
        assert await ids(store) == ["f", "other"]
        with pytest.raises(DataCorrupted, match="its record"):
            await store.begin_turn("s", "", 1)
        assert damaged(seen) == ["s", "s"]
        # A first page that ends at the damaged session has a cursor behind it.
        first, after = await store.list(after=0, limit=1, labels={}, now=0)
        assert [session.id for session in first] == ["f"]
        second, after = await store.list(after=after, limit=1, labels={}, now=0)
        assert ([session.id for session in second], after) == (["other"], 0)
        await talk(store, await create(store, "later"), "new")
        assert await store.end("s")
        labelled = (await store.list(after=0, limit=9, labels={"team": "bern"}, now=0))[0]
        assert [session.id for session in labelled] == ["f"]
    async with opened(path) as store:
        assert list(await store.expire(1e6, ())) == ["f", "other", "later"]


async def test_a_damaged_session_that_expires_is_deleted(path: Path) -> None:
    await talk_about_money(path)
    await asyncio.to_thread(execute, path, "UPDATE sessions SET labels = '{]' WHERE id = 's'")
    async with opened(path) as store:
        assert sorted(await store.expire(1e6, ())) == ["f", "other", "s"]


async def test_a_message_that_is_missing_is_noticed(path: Path) -> None:
    await talk_about_money(path)
    for position in (0, 2, 6):
        await asyncio.to_thread(
            execute,
            path,
            "DELETE FROM messages WHERE branch = 1 AND position = ?",
            position,
        )
        async with opened(path) as store:
            for read in (history, page_of):
                with pytest.raises(DataCorrupted, match="missing"):
                    await read(store, "s")


async def test_rows_without_a_checksum_are_served_as_they_are(path: Path) -> None:
    await talk_about_money(path)
    for table in _NOT_COVERED:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE {table} SET checksum = NULL")  # noqa: S608
    await asyncio.to_thread(rewrite, path, b"s 1000 EUR", b"s 9000 EUR")
    async with opened(path) as store:
        assert await texts(store, "s") == [
            "hello", "It costs 9000 EUR.", "How warm is it?",
        ]  # fmt: skip
        # But text that is no text is still not served, and new rows do have checksums.
        latest = await store.get("s")
        assert latest is not None
        await talk(store, latest, "And 2000 EUR.")
    await asyncio.to_thread(rewrite, path, b"s 9000 EUR", b"s 9000 \xffUR")
    async with opened(path) as store:
        with pytest.raises(DataCorrupted, match="message 2"):
            await history(store, "s")
        assert await store.get("s") is not None


async def test_damaged_pages_of_a_session_leave_the_store_up_for_the_others(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", "k" * 20_000)
        await create(store, "other", "x")
    data = bytearray(path.read_bytes())
    # A page that holds nothing else but a part of the message begins with the next one's number.
    page = next(at for at in range(0, len(data), 4096) if data[at + 4 : at + 4096] == b"k" * 4092)
    data[page : page + 4] = b"\xff" * 4
    path.write_bytes(data)
    seen: list[Event] = []
    async with opened(path, seen) as store:
        for read in (history, page_of, begin):
            with pytest.raises(DataCorrupted, match="its pages"):
                await read(store, "s")
        outcomes = await asyncio.gather(
            *(read(store, "s") for read in (history, page_of, begin)),
            store.touch("other", 1),
            texts(store, "other"),
            history(store, "s"),
            return_exceptions=True,
        )
        assert outcomes[3:5] == [True, ["x"]]
        assert [type(outcomes[each]) for each in (0, 1, 2, 5)] == [DataCorrupted] * 4
        assert [event.up for event in seen if isinstance(event, StoreStateChanged)] == [True]
        assert damaged(seen) == ["s"] * 7


async def test_damaged_bytes_anywhere_in_the_file_are_never_served(path: Path) -> None:
    await talk_about_money(path)
    expected = {}
    async with opened(path) as store:
        for name in ("s", "f", "other"):
            expected[name] = (await store.get(name), await history(store, name))
    good = path.read_bytes()
    source = random.Random(7)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        # The first page has the header and the schema, for which SQLite itself is responsible.
        for _ in range(source.choice((1, 1, 8))):
            data[source.randrange(4096, len(data))] = source.randrange(256)
        path.write_bytes(data)
        try:
            async with opened(path) as store:
                for name, (session, exchanges) in expected.items():
                    outcomes = await asyncio.gather(
                        store.get(name), history(store, name), return_exceptions=True
                    )
                    refused += any(isinstance(each, DataCorrupted) for each in outcomes)
                    for outcome in outcomes:
                        if isinstance(outcome, BaseException):
                            assert isinstance(outcome, (DataCorrupted, StoreUnavailable))
                    if outcomes[0] and not isinstance(outcomes[0], BaseException):
                        assert _timeless(outcomes[0]) == _timeless(session)
                    if outcomes[1] and not isinstance(outcomes[1], BaseException):
                        assert outcomes[1] == exchanges
        except StoreUnavailable:
            continue
    assert refused


def _timeless(session: Any) -> object:
    return replace(session, last_used_time=0.0)


async def test_a_wrong_role_is_not_served(path: Path) -> None:
    async with opened(path) as store:
        made = await create(store, "s")
        message = Message(Role.USER, "I am the user.")
        made = replace(made, message_count=1, exchange_count=1)
        await store.commit(Commit(made, [(0, message)]))
    await asyncio.to_thread(execute, path, "UPDATE messages SET role = 'system'")
    async with opened(path) as store:
        with pytest.raises(DataCorrupted):
            await history(store, "s")
