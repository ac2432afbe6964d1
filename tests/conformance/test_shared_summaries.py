"""Summaries of sessions in a store that several daemons share: none undoes another's change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conversations import create, turn
from fakes import FrozenClock, ScriptedEngine
from postgres import Server
from store_replicas import two

from ruvd.core.completions.compactor import CompactionPolicy, Compactor, WrittenSummary
from ruvd.core.errors import SessionBusy
from ruvd.core.model import Compaction, ContextWindow, IfBusy
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Commit
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.summaries import Summary
from ruvd.stores.postgres.store import PostgresStore

WINDOW = ContextWindow(1, 4, compaction=Compaction.SUMMARY)


def compactor_of(store: PostgresStore) -> Compactor:
    def ignore(event: Event) -> None:
        """Ignores the event."""

    clock = FrozenClock(1.0)
    sessions = SessionRegistry(store, clock, ignore, SessionPolicy())
    return Compactor(sessions, ScriptedEngine(), clock, ignore, CompactionPolicy())


async def test_a_summary_keeps_what_another_replica_has_stored_since_and_never_undoes_it(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, _):
        made = await create(one, "s", "a", "b", "c")
        stored = await one.get("s")
        assert stored is not None
        await one.commit(Commit(replace(stored, context_window=WINDOW)))
        mine, theirs = compactor_of(one), compactor_of(other)
        source = await mine.read("s")
        plan = mine.plan(source, is_asked_for=True)
        assert plan is not None
        written, options = WrittenSummary("mine"), CompletionOptions()
        # Another replica has a turn, which trims: no summary comes between.
        begun = (await other.begin_turn("s", "", 1.0)).session
        assert begun is not None
        with pytest.raises(SessionBusy):
            await mine.store(source.session, plan, written, options, IfBusy.REJECT)
        await other.commit(turn(replace(begun, window_start=3), "d"))
        session = await mine.store(source.session, plan, written, options, IfBusy.REJECT)
        assert (session.exchange_count, session.window_start) == (4, 3)
        assert session.summary == Summary("mine", 2)
        # A summary of the other replica, which was begun before, is dropped.
        with pytest.raises(SessionBusy):
            await theirs.store(
                source.session, plan, WrittenSummary("theirs"), options, IfBusy.REJECT
            )
        seen = await other.get("s")
        assert seen is not None
        assert seen.summary == Summary("mine", 2)
        assert seen.create_time == made.create_time
