"""The promises of a sealed SQLite store: what its files hold, who can open it, and its keys."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import completed, create, fork, ids, session, talk, texts, turn
from fakes import FrozenClock
from tool_conversation import TOOL_EXCHANGE, said

from ruvd.core.errors import DataCorrupted
from ruvd.core.ports.store import Commit, StoreSealed
from ruvd.sealing.keys import KeyRing, OperatorKeys
from ruvd.stores.sqlite import history, reads
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.sealed_rows import SealedRows
from ruvd.stores.sqlite.store import SqliteStore

A, B, C = (bytes([each]) * 32 for each in b"abc")
DEADLINE_SECONDS = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ruvd.db"


@asynccontextmanager
async def opened(
    path: Path, keys: OperatorKeys | dict[str, bytes] | None = None
) -> AsyncIterator[SqliteStore]:
    if isinstance(keys, dict):
        keys = OperatorKeys(KeyRing(keys))
    store = SqliteStore(
        path,
        clock=FrozenClock(),
        observer=lambda _: None,
        sealing=SealedRows(keys) if keys else None,
    )
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(statement).fetchall()


async def until(path: Path, statement: str, expected: object) -> None:
    """Waits until a query on another connection has the expected rows."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        # The database belongs to the thread of the store.
        while await asyncio.to_thread(query, path, statement) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_sealed(path: Path) -> None:
    await until(path, "SELECT state FROM sealing", [("sealed",)])


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement).rowcount > 0


def files_contain(path: Path, *words: str) -> set[str]:
    """Returns which of the words are in a file of the store, in whatever encoding."""
    data = b"".join(each.read_bytes() for each in path.parent.iterdir() if each.is_file())
    return {
        word
        for word in words
        if any(word.encode(code) in data for code in ("utf-8", "utf-16-le", "utf-16-be"))
    }


SECRETS = ("swordfish", "Be brief", "bern", "1000 EUR", "lookup", "weather", "kept by the fork")


async def fill(store: SqliteStore) -> None:
    """Makes `s` with all kinds of content, its fork `f`, and `other`."""
    made = await create(store, "s", "swordfish", labels={"team": "bern"})
    commit = completed(turn(made, "It costs 1000 EUR."), "r", "c")
    session = replace(commit.session, system_prompt="Be brief.")
    await store.commit(replace(commit, session=session))
    await store.commit(said(session, *TOOL_EXCHANGE))
    forked = await fork(store, session, "f", 1)
    await talk(store, forked, "kept by the fork")
    await talk(store, await create(store, "other", labels={"team": "bern"}), "other things")


async def everything(store: SqliteStore) -> list[object]:
    found: list[object] = []
    for name in ("s", "f", "other"):
        found += [await store.get(name), await store.exchanges(name, 0)]
        found += [await store.messages(name, 0, 1000, 1 << 20)]
    found += [await store.idempotency_record("s", "r"), await store.completion("c")]
    listed = await store.list(after=0, limit=9, labels={"team": "bern"}, now=1)
    return [*found, listed]


async def test_the_files_of_a_sealed_store_have_no_content_and_those_of_a_plain_one_do(
    path: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain" / "ruvd.db"
    async with opened(plain) as store:
        await fill(store)
        expected = await everything(store)
        found = await asyncio.to_thread(files_contain, plain, *SECRETS)
    assert {"swordfish", "Be brief", "bern", "1000 EUR", "kept by the fork"} <= found
    async with opened(path, {"k": A}) as store:
        await fill(store)
        assert await everything(store) == expected
        assert not await asyncio.to_thread(files_contain, path, *found)
    assert not await asyncio.to_thread(files_contain, path, *found)
    async with opened(path, {"k": A}) as store:
        assert await everything(store) == expected


async def test_without_the_right_keys_nothing_opens_and_the_message_names_them(path: Path) -> None:
    async with opened(path, {"old": A}) as store:
        await create(store, "s", "kept")
    async with opened(path, {"new": B, "old": A}) as store:
        await until(path, "SELECT DISTINCT key_id FROM data_keys", [("new",)])
        await create(store, "t")
    before = await asyncio.to_thread(path.read_bytes)
    refusals: list[tuple[dict[str, bytes], str]] = [
        ({}, "encrypted with the keys new: set encryption_key_file"),
        ({"other": C, "old": A}, "lacks the keys new"),
        ({"new": C}, "the keys new in encryption_key_file are not those"),
    ]
    for keys, message in refusals:
        with pytest.raises(StoreSealed, match=message):
            async with opened(path, keys or None):
                pass
    assert await asyncio.to_thread(path.read_bytes) == before
    async with opened(path, {"new": B}) as store:
        assert await texts(store, "s") == ["kept"]


async def test_keys_under_which_data_is_left_are_still_needed(path: Path) -> None:
    async with opened(path, {"old": A}) as store:
        await create(store, "s")
    execute(path, "UPDATE sealing SET key_id = 'older'")
    with pytest.raises(StoreSealed, match="lacks the keys older"):
        async with opened(path, {"old": A}):
            pass


SWAPS = {
    "contents of two messages": "UPDATE messages SET (content, checksum) = (SELECT content,"
    " checksum FROM messages o WHERE o.branch = messages.branch AND o.pk <> messages.pk"
    " AND o.role = messages.role) WHERE branch = (SELECT pk FROM sessions WHERE id = 's')",
    "a message of another session": "UPDATE messages SET content = (SELECT content FROM messages o"
    " WHERE o.branch = (SELECT pk FROM sessions WHERE id = 'other') LIMIT 1), checksum = NULL"
    " WHERE branch = (SELECT pk FROM sessions WHERE id = 's')",
    "data keys": "UPDATE data_keys SET sealed = (SELECT sealed FROM data_keys o"
    " WHERE o.branch <> data_keys.branch LIMIT 1)",
    "a role": "UPDATE messages SET role = 'assistant', checksum = NULL WHERE role = 'user'",
    "plain text": "UPDATE messages SET content = 'forged', checksum = NULL",
}


@pytest.mark.parametrize("statement", SWAPS.values(), ids=SWAPS)
async def test_rows_that_were_exchanged_or_forged_are_not_served(
    path: Path, statement: str
) -> None:
    async with opened(path, {"k": A}) as store:
        await talk(store, await create(store, "s", "mine"), "too")
        await talk(store, await create(store, "other", "theirs"), "too")
        await until_sealed(path)
    await asyncio.to_thread(execute, path, statement)
    with pytest.raises((DataCorrupted, StoreSealed)):
        async with opened(path, {"k": A}) as store:
            await store.exchanges("s", 0)


async def test_a_sealed_store_cannot_be_told_to_accept_plain_rows(path: Path) -> None:
    async with opened(path, {"k": A}) as store:
        await create(store, "s", "mine")
        await until_sealed(path)
    await asyncio.to_thread(execute, path, "UPDATE sealing SET state = 'sealing'")
    with pytest.raises(StoreSealed, match="or the store was changed"):
        async with opened(path, {"k": A}):
            pass


COLUMNS = {
    "message_count": "message_count = 1",
    "system prompt": "system_prompt = ''",
    "labels": "labels = '{}'",
    "model": "model = 'theirs'",
}


@pytest.mark.parametrize("change", COLUMNS.values(), ids=COLUMNS)
async def test_a_changed_record_of_a_session_is_not_served_even_without_its_checksum(
    path: Path, change: str
) -> None:
    async with opened(path, {"k": A}) as store:
        await fill(store)
        await until_sealed(path)
    await asyncio.to_thread(
        execute,
        path,
        f"UPDATE sessions SET {change}, checksum = NULL WHERE id = 's'",  # noqa: S608
    )
    async with opened(path, {"k": A}) as store:
        with pytest.raises(DataCorrupted, match="'s' is damaged"):
            await store.get("s")
        assert await ids(store) == ["f", "other"]
        assert await store.end("s")
        assert await texts(store, "f")


KEYS = "SELECT branch FROM data_keys ORDER BY branch"


async def test_a_data_key_is_destroyed_when_neither_session_nor_fork_needs_it(path: Path) -> None:
    async with opened(path, {"k": A}) as store:
        made = await talk(store, await create(store, "s", "mine"), "too")
        await fork(store, made, "f", 1)
        await fork(store, made, "g", 1)
        await create(store, "other", "theirs")
        assert await asyncio.to_thread(query, path, KEYS) == [(1,), (2,), (3,), (4,)]
        await store.end("other")
        assert await asyncio.to_thread(query, path, KEYS) == [(1,), (2,), (3,)]
        await store.end("s")
        await store.end("f")
        assert await asyncio.to_thread(query, path, KEYS) == [(1,), (3,)]
        assert await texts(store, "g") == ["mine"]
        await store.end("g")
        await until(path, KEYS, [])


async def test_a_key_of_a_session_that_was_not_made_belongs_to_nobody(path: Path) -> None:
    """A number of a branch whose transaction was rolled back is given again."""
    async with opened(path, {"k": A}) as store:
        await create(store, "s", "mine")
        good, bad = session("t"), replace(session("u"), labels={"no text": "\udcff"})
        outcomes = await asyncio.gather(
            store.commit(Commit(bad, create=True)),
            store.commit(Commit(good, create=True)),
            return_exceptions=True,
        )
        assert [isinstance(each, Exception) for each in outcomes] == [True, False]
        await store.commit(turn(good, "hello"))
    async with opened(path, {"k": A}) as store:
        assert await texts(store, "t") == ["hello"]
        assert await texts(store, "s") == ["mine"]


async def test_a_plain_store_is_sealed_while_it_serves_and_nothing_plain_is_left(
    path: Path,
) -> None:
    async with opened(path) as store:
        await fill(store)
        for number in range(250):
            await create(store, f"n{number}", "swordfish", labels={"team": "bern"})
        expected = await everything(store)
        before = await ids(store)
    assert await asyncio.to_thread(files_contain, path, "swordfish")
    async with opened(path, {"k": A}) as store:
        sealing = asyncio.create_task(until_sealed(path))
        while not sealing.done():
            assert await everything(store) == expected
            assert await ids(store) == before
        await sealing
        assert await everything(store) == expected
        await talk(store, await create(store, "new", labels={"team": "bern"}), "swordfish")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await asyncio.to_thread(files_contain, path, *SECRETS):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with opened(path, {"k": A}) as store:
        assert await texts(store, "new") == ["swordfish"]


async def test_a_read_that_began_before_the_last_row_was_sealed_is_served(path: Path) -> None:
    async with opened(path) as store:
        await create(store, "s", "kept", labels={"team": "bern"})

    def read_meanwhile() -> None:
        rows = SealedRows(OperatorKeys(KeyRing({"k": A})))
        file = DatabaseFile(path, "normal", rows)
        writer = file.open_writer()
        reader = file.open_reader()
        reader.execute("BEGIN")
        assert not reads.get(reader, "none")
        while rows.work(writer):
            pass
        assert not rows.accepts_plain
        for _ in range(2):
            assert [each[0].content for each in history.exchanges(reader, "s", 0)] == ["kept"]
            page = reads.page(reader, 0, 9, {"team": "bern"}, 1, (), None)
            assert [session.id for session in page[0]] == ["s"]
            reader.execute("ROLLBACK")
            reader.execute("BEGIN")
        reader.close()
        file.close_writer(writer)
        file.close_descriptors()
        file.release()

    await asyncio.to_thread(read_meanwhile)


async def test_sealing_that_was_interrupted_goes_on_with_another_key(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
        expected = await everything(store)
    async with opened(path, {"old": A}):
        pass
    async with opened(path, {"new": B, "old": A}) as store:
        await until_sealed(path)
        await until(path, "SELECT DISTINCT key_id FROM data_keys", [("new",)])
        assert await everything(store) == expected
    async with opened(path, {"new": B}) as store:
        assert await everything(store) == expected


async def test_damaged_plain_rows_are_still_damaged_when_they_are_sealed(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
    change: Callable[[str], str] = "UPDATE messages SET content = {} WHERE branch = 1".format
    await asyncio.to_thread(execute, path, change("CAST(x'73776f726466697368ff' AS TEXT)"))
    await asyncio.to_thread(
        execute, path, "UPDATE sessions SET system_prompt = 'forged' WHERE id = 'other'"
    )
    async with opened(path, {"k": A}) as store:
        await until_sealed(path)
        for read in (store.exchanges("s", 0), store.get("other")):
            with pytest.raises(DataCorrupted):
                await read
    assert not await asyncio.to_thread(files_contain, path, "forged")


async def test_a_new_first_key_is_taken_while_the_store_serves(path: Path) -> None:
    keys = OperatorKeys(KeyRing({"old": A}))
    async with opened(path, keys) as store:
        await fill(store)
        expected = await everything(store)
        keys.replace(KeyRing({"new": B, "old": A}))
        await until(path, "SELECT DISTINCT key_id FROM data_keys", [("new",)])
        await until(path, "SELECT key_id FROM sealing", [("new",)])
        assert await everything(store) == expected
        await create(store, "later", "kept")
    async with opened(path, {"new": B}) as store:
        assert await everything(store) == expected
        assert await texts(store, "later") == ["kept"]
