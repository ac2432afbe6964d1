"""Room for new sessions, the sums of tenants, and tombstones: every store, and a simple model.

The model finds everything by searching: the sums by adding up, the sessions to delete by sorting.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Collection, Coroutine
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conversations import create, evicted, expired, fork, forked, ids, session, talk, texts, turn
from fakes import FrozenClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ruvd.core.errors import QuotaExceeded, RuvdError, SessionExists, SessionLimit, SessionNotFound
from ruvd.core.model import Session
from ruvd.core.ports.store import (
    Commit,
    Gone,
    RemovedSession,
    Store,
    StoreUsage,
    TombstoneLimits,
)
from ruvd.core.tenants import tenant_of
from ruvd.stores.memory import MemoryStore
from ruvd.stores.sqlite.store import SqliteStore


async def fill(store: Store, *session_ids: str) -> None:
    """Creates sessions that are used one second after the other."""
    for number, session_id in enumerate(session_ids):
        await create(store, session_id, now=number)


async def test_a_newcomer_evicts_its_own_tenants_least_recently_used(store: Store) -> None:
    await fill(store, "a/1", "b/1", "b/2", "a/2")
    creation = Commit(session("b/3", now=9), create=True, max_sessions=4, now=9)
    assert list(await store.commit(creation)) == evicted("b/1")
    assert await ids(store) == ["a/1", "b/2", "a/2", "b/3"]


async def test_a_newcomer_without_a_session_to_give_is_refused_and_changes_nothing(
    store: Store,
) -> None:
    await fill(store, "a/1", "a/2", "b/1")
    for tenant, protected in (("c", ()), ("b", ("b/1",))):
        creation = Commit(
            session(f"{tenant}/new", now=9),
            create=True,
            max_sessions=3,
            protected=protected,
            refusable=True,
            now=9,
        )
        with pytest.raises(SessionLimit):
            await store.commit(creation)
        assert await ids(store) == ["a/1", "a/2", "b/1"]
        assert await store.gone("b/1", 9) is None


async def test_a_turn_that_is_answered_is_committed_beyond_the_limits(store: Store) -> None:
    await fill(store, "a/1", "a/2")
    creation = Commit(session("b/1", now=9), create=True, max_sessions=2, max_own_sessions=0, now=9)
    assert not await store.commit(creation)
    assert await ids(store) == ["a/1", "a/2", "b/1"]


async def test_a_lower_limit_costs_a_tenant_one_session_and_not_all(store: Store) -> None:
    await fill(store, *(f"a/{number}" for number in range(6)), "b/1", "b/2")
    creation = Commit(session("b/3", now=9), create=True, max_sessions=3, now=9)
    assert list(await store.commit(creation)) == evicted("b/1")
    creation = Commit(session("a/new", now=9), create=True, max_sessions=3, now=9)
    assert list(await store.commit(creation)) == evicted("a/0", "a/1", "a/2", "a/3")


async def test_expired_sessions_of_all_tenants_make_room_first(store: Store) -> None:
    await create(store, "a/old", idle=1)
    await create(store, "b/1", now=5)
    creation = Commit(session("b/2", now=9), create=True, max_sessions=2, refusable=True, now=9)
    assert list(await store.commit(creation)) == expired("a/old")
    assert await store.gone("a/old", 9) is Gone.EXPIRED


@pytest.mark.parametrize("evicts", [True, False])
async def test_at_its_own_limit_a_tenant_gives_a_session_or_is_refused(
    store: Store, *, evicts: bool
) -> None:
    await fill(store, "a/1", "a/2", "b/1")
    creation = Commit(
        session("a/3", now=9),
        create=True,
        max_sessions=9,
        max_own_sessions=2,
        evicts_own=evicts,
        refusable=True,
        now=9,
    )
    if evicts:
        assert list(await store.commit(creation)) == evicted("a/1")
        assert await store.gone("a/1", 9) is Gone.EVICTED
        return
    with pytest.raises(QuotaExceeded) as refused:
        await store.commit(creation)
    assert refused.value.quota == "max_sessions"
    assert await ids(store) == ["a/1", "a/2", "b/1"]
    # An expired one makes room all the same.
    late = replace(creation, session=session("a/3", now=100), now=100)
    assert list(await store.commit(late)) == expired("a/1")


async def test_the_bytes_of_a_tenant_are_those_of_histories_and_system_prompts(
    store: Store,
) -> None:
    made = session("a/s", system_prompt="Be brief \N{SNOWMAN}")
    await store.commit(Commit(made, create=True))
    await talk(store, made, "12345")
    size = len("12345re: 12345")
    assert await store.usage("a") == StoreUsage(1, 1, 12 + size)
    parent = await store.get("a/s")
    assert parent is not None
    await fork(store, parent, "a/f", 1)
    # A fork counts what it shares with its parent.
    assert await store.usage("a") == StoreUsage(2, 2, 2 * (12 + size))
    await store.end("a/s")
    assert await store.usage("a") == StoreUsage(1, 1, 12 + size)
    assert await store.usage("b") == await store.usage("") == StoreUsage(1, 0, 0)
    await store.end("a/f")
    assert await store.usage("a") == StoreUsage()


async def test_a_refusable_change_beyond_the_bytes_of_its_tenant_changes_nothing(
    store: Store,
) -> None:
    made = await create(store, "a/s", "12345")
    await create(store, "b/s", "a longer text of another tenant")
    change = replace(turn(made, "6789"), refusable=True, max_own_bytes=25)
    for refused in (
        change,
        Commit(
            session("a/t", system_prompt="x" * 12), create=True, refusable=True, max_own_bytes=25
        ),
    ):
        with pytest.raises(QuotaExceeded) as caught:
            await store.commit(refused)
        assert caught.value.quota == "max_stored_bytes"
    child = replace(await forked(store, made, "a/f", 1), refusable=True, max_own_bytes=25)
    with pytest.raises(QuotaExceeded):
        await store.fork(child, "a/s")
    assert await texts(store, "a/s") == ["12345"]
    assert await ids(store) == ["a/s", "b/s"]
    await store.commit(replace(change, max_own_bytes=26))
    assert await texts(store, "a/s") == ["12345", "6789"]


async def test_an_evicted_session_is_gone_until_it_is_created_again_or_ended(
    store: Store,
) -> None:
    for again in (True, False):
        await create(store, "a/s", now=1)
        await create(store, "a/new", now=2, max_sessions=1)
        assert await store.gone("a/s", 2) is Gone.EVICTED
        begun = await store.begin_turn("a/s", "", 2)
        assert (begun.session, begun.gone, begun.usage) == (None, Gone.EVICTED, StoreUsage(1, 1, 0))
        assert await store.gone("s", 2) is await store.gone("b/s", 2) is None
        if again:
            await create(store, "a/s", now=2)
        assert await store.end("a/s") is again
        assert await store.gone("a/s", 2) is None
        await store.end("a/new")


async def test_a_session_can_be_ended_with_a_tombstone(store: Store) -> None:
    assert not await store.end("s", gone=Gone.EXPIRED, now=1)
    assert await store.gone("s", 1) is None
    await create(store, "s", idle=1)
    assert await store.end("s", gone=Gone.EXPIRED, now=1)
    assert await store.gone("s", 1) is Gone.EXPIRED


async def test_a_tombstone_counts_for_its_retention(store: Store) -> None:
    await create(store, "s", idle=5)
    assert await store.gone("s", 4.9) is None
    assert await store.gone("s", 5) is Gone.EXPIRED, "it is stored still"
    assert list(await store.expire(10, ())) == ["s"]
    week = 7 * 86_400
    assert await store.gone("s", 9.9 + week) is Gone.EXPIRED
    assert await store.gone("s", 10 + week) is None
    assert (await store.begin_turn("s", "", 10 + week)).gone is None


async def test_the_migration_counts_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SqliteStore(path, clock=FrozenClock(), observer=lambda _: None)
    await store.open()
    try:
        for name in ("s", "a/s", "a/b/s", "a//s"):
            await talk(store, await create(store, name), "\N{SNOWMAN}")
    finally:
        await store.close()

    def undo() -> list[tuple[Any, ...]]:
        """Takes the migration back, as far as the next start does it again."""
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            before = db.execute("SELECT * FROM tenants ORDER BY tenant").fetchall()
            for kind, name in db.execute("SELECT type, name FROM sqlite_master").fetchall():
                if kind == "trigger" or name in ("tenants", "tombstones"):
                    db.execute(f"DROP {kind} IF EXISTS {name}")
            db.execute("DROP INDEX sessions_by_use")
            db.execute("CREATE INDEX sessions_by_use ON sessions (last_used_time)")
            for column in ("tenant", "stored_bytes", "compaction"):
                db.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
            db.execute("ALTER TABLE totals DROP COLUMN tombstones")
            db.execute("PRAGMA user_version = 5")
            return before

    before = await asyncio.to_thread(undo)
    store = SqliteStore(path, clock=FrozenClock(), observer=lambda _: None)
    await store.open()
    try:
        assert [each[0] for each in before] == ["", "a/", "a//", "a/b/"]
        for tenant in ("default", "a", "a/", "a/b"):
            assert await store.usage(tenant) == StoreUsage(4, 1, 10)
    finally:
        await store.close()


# --- any sequence of steps ------------------------------------------------------------------------

LIMITS = TombstoneLimits(retention_seconds=20, max_of_tenant=3, max_in_all=5)
TENANTS = ("default", "a", "a/b")
IDS = [f"{prefix}{name}" for prefix in ("", "a/", "a/b/") for name in "xyz"]
SOME_ID = st.sampled_from(IDS)


@dataclass
class Row:
    """A session of the model. `made` is its place in the order of creation."""

    session: Session
    made: int

    @property
    def size(self) -> int:
        return self.session.size_bytes + len(self.session.system_prompt)


@dataclass(frozen=True)
class Refusal:
    """An error of a store."""

    kind: type[RuvdError]
    text: str


class StoreMachine(RuleBasedStateMachine):
    """Does the same steps on both stores and on the model, and compares what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="ruvd-")
        self.path = Path(self.folder.name) / "ruvd.db"
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.made = 0
        self.rows: dict[str, Row] = {}
        self.tombstones: dict[str, tuple[Gone, float]] = {}
        self.memory = MemoryStore(LIMITS)
        self.sqlite = self.sqlite_store()
        self.go(self.sqlite.open())

    def sqlite_store(self) -> SqliteStore:
        return SqliteStore(
            self.path, clock=FrozenClock(), observer=lambda _: None, tombstones=LIMITS
        )

    def go(self, what: Coroutine[Any, Any, Any]) -> Any:
        async def soon() -> Any:
            async with asyncio.timeout(60):
                return await what

        return self.runner.run(soon())

    def teardown(self) -> None:
        self.go(self.sqlite.close())
        self.runner.close()
        self.folder.cleanup()

    def both(self, method: str, *values: Any, **options: Any) -> Any:
        """Calls both stores, and returns what both return or the class of the error they raise."""

        async def outcome(store: Store) -> Any:
            try:
                return await getattr(store, method)(*values, **options)
            except RuvdError as error:
                return Refusal(type(error), str(error))

        memory, sqlite = self.go(outcome(self.memory)), self.go(outcome(self.sqlite))
        if method in ("commit", "fork", "expire") and not isinstance(memory, Refusal):
            memory, sqlite = list(memory), list(sqlite)
        assert memory == sqlite
        return memory.kind if isinstance(memory, Refusal) else memory

    @rule(seconds=st.sampled_from([1.0, 3.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reopen(self) -> None:
        """Stops and starts the SQLite store, which loses nothing."""
        self.go(self.sqlite.close())
        self.sqlite = self.sqlite_store()
        self.go(self.sqlite.open())

    @rule(
        session_id=SOME_ID,
        idle=st.sampled_from([2.0, 8.0, 100.0]),
        prompt=st.sampled_from(["", "Be brief."]),
        limit=st.integers(1, 8),
        own=st.none() | st.integers(1, 3),
        most=st.none() | st.integers(1, 60),
        evicts=st.booleans(),
        refusable=st.booleans(),
        protected=st.sets(SOME_ID, max_size=3),
        parent_id=st.none() | SOME_ID,
    )
    def create(
        self, *, session_id: str, idle: float, prompt: str, limit: int, own: int | None,
        most: int | None, evicts: bool, refusable: bool, protected: Collection[str],
        parent_id: str | None,
    ) -> None:  # fmt: skip
        made = session(session_id, now=self.now, idle=idle, system_prompt=prompt)
        parent = self.rows.get(parent_id) if parent_id else None
        if parent is not None:
            kept = parent.session
            made = replace(
                kept,
                id=session_id,
                create_time=self.now,
                last_used_time=self.now,
                parent_id=kept.id,
            )
        change = Commit(
            made,
            create=True,
            max_sessions=limit,
            max_own_sessions=own,
            max_own_bytes=most,
            evicts_own=evicts,
            refusable=refusable,
            protected=protected,
            now=self.now,
        )
        if parent is None:
            found = self.both("commit", change)
        else:
            found = self.both("fork", change, parent.session.id)
        assert found == self.created(change)

    def created(  # noqa: C901  # in the order of the rules
        self, change: Commit
    ) -> list[RemovedSession] | type[RuvdError]:
        """Applies a creation to the model, and returns the outcome that it predicts."""
        made = change.session
        old = self.rows.get(made.id)
        if old is not None and old.session.expire_time > self.now:
            return SessionExists
        rows = {each: row for each, row in self.rows.items() if each != made.id}
        own = [row for row in rows.values() if tenant_of(row.session.id) == tenant_of(made.id)]
        new = Row(made, self.made + 1)
        size = sum(row.size for row in own) + new.size
        if change.refusable and new.size and size > (change.max_own_bytes or size):
            return QuotaExceeded
        removed = []
        free = {each: row for each, row in rows.items() if each not in change.protected}
        while self.too_many(change, rows):
            stale = [row for row in free.values() if row.session.expire_time <= self.now]
            if not stale:
                break
            first = min(stale, key=lambda row: (row.session.expire_time, row.made)).session.id
            del free[first], rows[first]
            removed.append(RemovedSession(first, expired=True))
        total, mine = self.counts(change, rows)
        give = 0
        if change.max_sessions is not None and total > change.max_sessions:
            give = max(1, mine - change.max_sessions)
        if change.max_own_sessions is not None and change.evicts_own:
            give = max(give, mine - change.max_own_sessions)
        evictable = [r for r in free.values() if tenant_of(r.session.id) == tenant_of(made.id)]
        evictable.sort(key=lambda row: (row.session.last_used_time, row.made))
        for row in evictable[: max(give, 0)]:
            del rows[row.session.id]
            removed.append(RemovedSession(row.session.id, expired=False))
        if change.refusable and self.too_many(change, rows):
            _, mine = self.counts(change, rows)
            own_limit = change.max_own_sessions
            return QuotaExceeded if mine > (own_limit or mine) else SessionLimit
        self.tombstones.pop(made.id, None)
        self.made += 1
        self.rows = rows | {made.id: new}
        for why in Gone:
            for each in removed:
                if each.expired is (why is Gone.EXPIRED):
                    self.bury(each.session_id, why)
        return [*([RemovedSession(made.id, expired=True)] if old else []), *removed]

    def counts(self, change: Commit, rows: dict[str, Row]) -> tuple[int, int]:
        tenant = tenant_of(change.session.id)
        return len(rows) + 1, 1 + sum(tenant_of(each) == tenant for each in rows)

    def too_many(self, change: Commit, rows: dict[str, Row]) -> bool:
        total, mine = self.counts(change, rows)
        own, limit = change.max_own_sessions, change.max_sessions
        return (limit is not None and total > limit) or (own is not None and mine > own)

    def bury(self, session_id: str, reason: Gone) -> None:
        self.tombstones.pop(session_id, None)
        self.tombstones[session_id] = (reason, self.now)
        own = [each for each in self.tombstones if tenant_of(each) == tenant_of(session_id)]
        for oldest in own[: -LIMITS.max_of_tenant]:
            del self.tombstones[oldest]
        for oldest in [*self.tombstones][: -LIMITS.max_in_all]:
            del self.tombstones[oldest]

    @rule(
        session_id=SOME_ID, words=st.integers(0, 9), refusable=st.booleans(),
        most=st.none() | st.integers(1, 60),
    )  # fmt: skip
    def talk(self, session_id: str, words: int, most: int | None, *, refusable: bool) -> None:
        row = self.rows.get(session_id)
        change = turn(row.session if row else session(session_id), "w" * words, now=self.now)
        found = self.both("commit", replace(change, refusable=refusable, max_own_bytes=most))
        if row is None:
            assert found is SessionNotFound
            return
        added = change.session.size_bytes - row.session.size_bytes
        own = sum(
            each.size
            for each in self.rows.values()
            if tenant_of(each.session.id) == tenant_of(session_id)
        )
        if refusable and most is not None and own + added > most:
            assert found is QuotaExceeded
            return
        assert found == []
        row.session = change.session

    @rule(session_id=SOME_ID, reason=st.none() | st.sampled_from(Gone))
    def end(self, session_id: str, reason: Gone | None) -> None:
        existed = self.both("end", session_id, gone=reason, now=self.now)
        assert existed is (session_id in self.rows)
        self.rows.pop(session_id, None)
        if reason is None:
            self.tombstones.pop(session_id, None)
        elif existed:
            self.bury(session_id, reason)

    @rule(protected=st.sets(SOME_ID, max_size=3))
    def expire(self, protected: Collection[str]) -> None:
        stale = [
            row
            for each, row in self.rows.items()
            if row.session.expire_time <= self.now and each not in protected
        ]
        stale.sort(key=lambda row: (row.session.expire_time, row.made))
        gone = [row.session.id for row in stale]
        assert list(self.both("expire", self.now, protected)) == gone
        for each in gone:
            del self.rows[each]
        horizon = self.now - LIMITS.retention_seconds
        kept = {each: stone for each, stone in self.tombstones.items() if stone[1] > horizon}
        self.tombstones = kept
        for each in gone:
            self.bury(each, Gone.EXPIRED)

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        for tenant in TENANTS:
            own = [row for each, row in self.rows.items() if tenant_of(each) == tenant]
            sums = StoreUsage(len(self.rows), len(own), sum(row.size for row in own))
            assert self.both("usage", tenant) == sums
        for session_id in IDS:
            row, stone = self.rows.get(session_id), self.tombstones.get(session_id)
            expected = None
            if row is not None:
                expected = Gone.EXPIRED if row.session.expire_time <= self.now else None
            elif stone is not None and stone[1] > self.now - LIMITS.retention_seconds:
                expected = stone[0]
            assert self.both("gone", session_id, self.now) is expected
        with closing(sqlite3.connect(self.path)) as db:
            assert db.execute("SELECT sessions, tombstones FROM totals").fetchall() == [
                (len(self.rows), len(self.tombstones))
            ]
            truth = "SELECT tenant FROM sessions UNION SELECT tenant FROM tombstones ORDER BY 1"
            kept = "SELECT tenant FROM tenants ORDER BY 1"
            assert db.execute(truth).fetchall() == db.execute(kept).fetchall()


TestStores = pytest.mark.timeout(600)(StoreMachine.TestCase)
TestStores.settings = settings(
    stateful_step_count=25, max_examples=60, deadline=None, derandomize=True
)
