"""Changes of one session by daemons that share a PostgreSQL database: none is lost or undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from conversations import create, session, turn
from core import Core
from fakes import FrozenClock
from postgres import Server
from store_replicas import WAIT_SECONDS, end_leases, execute, replica, two, waiting_for_locks

from ruvd.core.errors import SessionExists
from ruvd.core.model import ContextWindow, Message, Role
from ruvd.core.ports.events import Event, ReplicaJoined, SessionTakenOver
from ruvd.core.ports.replicas import SessionChanged, SessionElsewhere
from ruvd.core.ports.store import Commit, Gone
from ruvd.core.sessions.commands import NewFork, SessionChanges
from ruvd.core.sessions.model import NewSession, SessionPolicy


@asynccontextmanager
async def two_daemons(server: Server) -> AsyncIterator[tuple[Core, Core, str]]:
    """The cores of two daemons, with the same clock."""
    clock, conninfo = FrozenClock(), server.new_schema()
    policy = SessionPolicy(idle_timeout_seconds=100)
    async with replica(conninfo) as one, replica(conninfo) as other:
        yield (
            Core(store=one, clock=clock, policy=policy),
            Core(store=other, clock=clock, policy=policy),
            conninfo,
        )


async def at_the_same_moment(conninfo: str, *changes: Awaitable[object]) -> Sequence[object]:
    """Returns the results of changes that have all read the session before one of them writes."""
    with psycopg.connect(conninfo) as db:
        db.execute("SELECT FROM sessions FOR UPDATE")
        running = [asyncio.ensure_future(each) for each in changes]
        await waiting_for_locks(conninfo, len(running))
        db.rollback()
    async with asyncio.timeout(WAIT_SECONDS):
        return await asyncio.gather(*running)


async def test_a_replica_tells_the_id_by_which_others_name_it(postgres: Server) -> None:
    events: list[Event] = []
    async with two(postgres, events.append) as (one, other, conninfo):
        joined = [each.replica for each in events if isinstance(each, ReplicaJoined)]
        await create(one)
        await one.begin_turn("s", "", 1)
        end_leases(conninfo)
        await other.begin_turn("s", "", 2)
        assert len(set(joined)) == 2
        assert events[-1] == SessionTakenOver("s", joined[0])


async def test_two_updates_at_the_same_moment_both_take_effect(postgres: Server) -> None:
    async with two_daemons(postgres) as (one, other, conninfo):
        await one.commands.create(NewSession("s"))
        labels = SessionChanges(labels={"a": "b"})
        window = SessionChanges(context_window=ContextWindow(max_tokens=77))
        await at_the_same_moment(
            conninfo, one.commands.update("s", labels), other.commands.update("s", window)
        )
        found = (await one.sessions.get("s")).session
        assert (found.labels, found.context_window.max_tokens) == ({"a": "b"}, 77)


async def test_messages_that_are_appended_do_not_undo_an_update(postgres: Server) -> None:
    async with two_daemons(postgres) as (one, other, conninfo):
        await one.commands.create(NewSession("s"))
        await at_the_same_moment(
            conninfo,
            one.commands.update("s", SessionChanges(labels={"a": "b"})),
            other.commands.append("s", [Message(Role.USER, "appended")]),
        )
        assert (await one.sessions.get("s")).session.labels == {"a": "b"}
        assert await one.history() == ["appended"]


async def test_messages_that_two_daemons_append_are_all_there_and_a_repeated_request_once(
    postgres: Server,
) -> None:
    async with two_daemons(postgres) as (one, other, conninfo):
        await one.commands.create(NewSession("s"))
        await at_the_same_moment(
            conninfo,
            one.commands.append("s", [Message(Role.USER, "repeated")], "r"),
            other.commands.append("s", [Message(Role.USER, "repeated")], "r"),
        )
        assert await one.history() == ["repeated"]
        await at_the_same_moment(
            conninfo,
            one.commands.append("s", [Message(Role.USER, "one")]),
            other.commands.append("s", [Message(Role.USER, "other")]),
        )
        assert sorted((await one.history())[1:]) == ["one", "other"]


async def test_a_change_waits_for_the_turn_of_another_daemon(postgres: Server) -> None:
    async with two_daemons(postgres) as (one, other, _):
        await one.say("hello")
        before = (await one.sessions.get("s")).session
        begun = await one.store.begin_turn("s", "", one.clock.now())
        changes = [
            asyncio.ensure_future(other.commands.update("s", SessionChanges(labels={"a": "b"}))),
            asyncio.ensure_future(other.commands.append("s", [Message(Role.USER, "later")])),
        ]
        done, _ = await asyncio.wait(changes, timeout=0.2)
        assert not done
        assert begun.session is not None
        assert begun.session == replace(before, last_used_time=begun.session.last_used_time)
        await one.store.commit(turn(begun.session, "first"))
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*changes)
        assert (await one.history())[2:] == ["first", "re: first", "later"]
        assert (await one.sessions.get("s")).session.labels == {"a": "b"}


async def test_a_request_id_creates_one_session_whichever_daemons_are_asked(
    postgres: Server,
) -> None:
    async with two_daemons(postgres) as (one, other, _):
        async with asyncio.timeout(WAIT_SECONDS):
            made = await asyncio.gather(
                *(
                    each.commands.create(NewSession(request_id=f"r{number}"))
                    for number in range(5)
                    for each in (one, other)
                )
            )
            assert len({each.session.id for each in made}) == 5
            await one.commands.create(NewSession("parent"))
            forks = await asyncio.gather(
                *(
                    each.commands.fork(NewFork("parent", request_id=f"f{number}"))
                    for number in range(5)
                    for each in (one, other)
                )
            )
        assert len({each.session.id for each in forks}) == 5


async def test_a_fork_shares_no_history_of_a_session_that_has_its_parents_id_since(
    postgres: Server,
) -> None:
    async with two_daemons(postgres) as (one, other, _):
        await one.say("of the old session")
        parent = await one.store.get("s")
        assert parent is not None
        await other.commands.end("s")
        await other.say("of the new session")
        child = replace(parent, id="child", parent_id="s")
        with pytest.raises(SessionChanged):
            await one.store.fork(Commit(child, create=True), "s")


async def test_an_expired_session_that_another_daemon_replaces_is_not_deleted_again(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, _):
        await create(one, "s", idle=10)
        assert (await one.begin_turn("s", "", 50)).has_expired
        # Meanwhile another daemon makes a new session of it.
        assert await other.end("s", gone=Gone.EXPIRED, now=50)
        await create(other, "s", "a", now=50)
        assert not await one.end("s", gone=Gone.EXPIRED, now=50)
        assert await one.get("s") is not None


async def test_a_session_in_a_turn_does_not_expire_for_other_daemons(postgres: Server) -> None:
    async with two(postgres) as (one, other, conninfo):
        await create(one, "s", idle=10)
        begun = await one.begin_turn("s", "", 1)
        assert begun.session is not None
        with pytest.raises(SessionElsewhere):
            await other.begin_turn("s", "", 50)
        assert not await other.end("s", gone=Gone.EXPIRED, now=50)
        with pytest.raises(SessionExists):
            await other.commit(Commit(session("s", now=50), create=True, now=50))
        await one.commit(turn(begun.session, "a", now=50))
        execute(conninfo, "UPDATE sessions SET expire_time = 60")
        await one.begin_turn("s", "", 55)
        end_leases(conninfo)
        assert (await other.begin_turn("s", "", 100)).has_expired


async def test_a_session_in_a_turn_is_not_evicted_by_its_own_daemon(postgres: Server) -> None:
    """The turn may begin after the daemon has said which sessions are in use."""
    async with two(postgres) as (one, _, _):
        await create(one, "s")
        begun = await one.begin_turn("s", "", 1)
        made = session("new", now=2)
        assert not await one.commit(Commit(made, create=True, max_sessions=1, now=2))
        assert begun.session is not None
        await one.commit(turn(begun.session, "a"))


async def test_a_late_end_of_a_turn_does_not_shorten_the_life_of_its_session(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, _):
        await create(one, "s", idle=10)
        await other.touch("s", 50)
        await one.touch("s", 1)  # of a daemon that was paused
        found = await one.get("s")
        assert found is not None
        assert found.last_used_time == 50
