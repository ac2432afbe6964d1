"""The turns of the SQLite store that begin on the event loop, while its thread is at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import create, evicted, session, texts, turn
from fakes import FrozenClock

from ruvd.core.model import Message, Role
from ruvd.core.ports.events import Event, StoreBatch
from ruvd.core.ports.store import Commit
from ruvd.stores.sqlite.store import SqliteStore


def ignore(event: Event) -> None:
    """Ignores the event."""


@asynccontextmanager
async def opened(folder: Path, seen: list[Event] | None = None) -> AsyncIterator[SqliteStore]:
    observer = ignore if seen is None else seen.append
    store = SqliteStore(folder / "ruvd.db", clock=FrozenClock(), observer=observer)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_a_turn_begins_at_once_while_turns_of_other_sessions_are_committed(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        mine = await create(store, "mine", "a")
        other = await create(store, "other", "a")
        committing = asyncio.create_task(store.commit(turn(other, "b")))
        await asyncio.sleep(0)
        begins = store.begin_turn("mine", "", 1)
        with pytest.raises(StopIteration) as at_once:
            begins.send(None)
        assert at_once.value.value.session == replace(mine, last_used_time=1)
        assert not committing.done()
        await committing
        assert await texts(store, "other") == ["a", "b"]


async def test_a_turn_begins_after_the_writes_that_may_change_its_session(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        mine = await create(store, "mine", "a")
        committing = asyncio.create_task(store.commit(turn(mine, "b")))
        await asyncio.sleep(0)
        snapshot = await store.begin_turn("mine", "", 1)
        assert committing.done()
        assert snapshot.exchanges is not None
        assert [exchange[0] for exchange in snapshot.exchanges] == [
            Message(Role.USER, "a"),
            Message(Role.USER, "b"),
        ]
        # A new session takes the place of the one that was used least lately.
        newcomer = Commit(session("new"), create=True, now=0.0, max_sessions=1)
        creating = asyncio.create_task(store.commit(newcomer))
        await asyncio.sleep(0)
        snapshot = await store.begin_turn("mine", "", 1)
        assert await creating == evicted("mine")
        assert snapshot.session is None


async def test_writes_that_are_not_handed_over_yet_are_committed_by_a_close(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        mine = await create(store, "mine", "a")
        committing = asyncio.create_task(store.commit(turn(mine, "b")))
        closing = asyncio.create_task(store.close())
        await asyncio.gather(committing, closing)
    async with opened(tmp_path) as store:
        assert await texts(store, "mine") == ["a", "b"]


async def test_the_writes_of_one_pass_of_the_loop_share_a_transaction(tmp_path: Path) -> None:
    seen: list[Event] = []
    async with opened(tmp_path, seen) as store:
        sessions = [await create(store, f"s{number}", "a") for number in range(8)]
        seen.clear()
        await asyncio.gather(*(store.commit(turn(each, "b")) for each in sessions))
        assert [event for event in seen if isinstance(event, StoreBatch)] == [StoreBatch(8)]
