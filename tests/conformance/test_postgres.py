"""The PostgreSQL store as several daemons share it, and as its server or the way to it fails."""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from conversations import completed, create, evicted, expired, fork, session, talk, turn
from fakes import FrozenClock
from postgres import Server, running
from postgres_link import Link
from store_replicas import (
    WAIT_SECONDS,
    end_leases,
    execute,
    ignore,
    linked,
    of_replicas,
    replica,
    texts,
    two,
    waiting_for_locks,
)

from ruvd.core.errors import (
    OwnershipLost,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
)
from ruvd.core.model import Message, Role, Session
from ruvd.core.ports.events import (
    Event,
    LeaseRenewed,
    SessionTakenOver,
    StoreStateChanged,
    UncertainWriteEnded,
    WriteFenced,
)
from ruvd.core.ports.replicas import Replica, SessionChanged, SessionElsewhere
from ruvd.core.ports.store import Commit
from ruvd.stores.postgres.store import PostgresStore


async def test_a_turn_that_another_replica_has_begun_is_waited_for(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        made = await create(one)
        begun = await one.begin_turn("s", "", 1)
        with pytest.raises(SessionElsewhere):
            await other.begin_turn("s", "", 1)
        assert begun.session is not None
        await one.commit(turn(begun.session, "a"))
        seen = await other.begin_turn("s", "", 2)
        assert seen.exchanges is not None
        assert texts(seen.exchanges) == ["a", "re: a"]
        assert made.create_time == 0


async def test_a_turn_elsewhere_names_its_owner_without_a_second_question(
    postgres: Server,
) -> None:
    async with linked(postgres) as (store, link, conninfo), replica(conninfo) as owner:
        await owner.replicas.announce("127.0.0.1:1")
        await create(owner)
        await owner.begin_turn("s", "", 1)
        link.marker = b"UNION ALL SELECT owner FROM claims"  # the question for an owner alone
        with pytest.raises(SessionElsewhere) as caught:
            await store.begin_turn("s", "", 1)
        assert caught.value.owner == Replica(owner.replicas.me, "127.0.0.1:1")
        assert link.broken == 0
        assert await store.replicas.owner("s") == caught.value.owner
        assert link.broken == 1


async def test_a_turn_without_a_commit_gives_the_session_back(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        await create(one)
        await one.begin_turn("s", "", 1)
        assert await one.touch("s", 2)
        assert (await other.begin_turn("s", "", 3)).session is not None


async def test_a_replica_that_was_paused_past_its_lease_cannot_commit(postgres: Server) -> None:
    events: list[Event] = []
    async with two(postgres, events.append) as (one, other, conninfo):
        await create(one)
        paused = await one.begin_turn("s", "r", 1)
        end_leases(conninfo)
        taken = await other.begin_turn("s", "r", 1)
        assert paused.session is not None
        assert taken.session is not None
        with pytest.raises(OwnershipLost):  # also before the other one has committed
            await one.commit(completed(turn(paused.session, "paused"), "r", "c1"))
        await other.commit(completed(turn(taken.session, "taken"), "r", "c2"))
        assert texts(await other.exchanges("s", 0)) == ["taken", "re: taken"]
        found = await one.begin_turn("s", "r", 2)
        assert found.idempotency_record is not None
        assert found.idempotency_record.completion_id == "c2"
        assert of_replicas(events) == [
            SessionTakenOver("s", one._lease.replica),
            WriteFenced("s", "taken"),
        ]


async def test_the_late_commit_of_a_paused_replica_is_refused(postgres: Server) -> None:
    async with two(postgres) as (one, other, conninfo):
        await create(one)
        paused = await one.begin_turn("s", "", 1)
        end_leases(conninfo)
        taken = await other.begin_turn("s", "", 1)
        assert paused.session is not None
        assert taken.session is not None
        await other.commit(turn(taken.session, "taken"))
        with pytest.raises(OwnershipLost):
            await one.commit(completed(turn(paused.session, "paused"), "r", "c"))
        assert texts(await one.exchanges("s", 0)) == ["taken", "re: taken"]


async def test_the_late_commit_of_a_paused_replica_does_not_undo_a_change_without_messages(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, conninfo):
        await create(one)
        paused = await one.begin_turn("s", "", 1)
        end_leases(conninfo)
        found = await other.get("s")
        assert found is not None
        await other.commit(Commit(replace(found, labels={"a": "changed"})))
        assert paused.session is not None
        with pytest.raises(OwnershipLost):
            await one.commit(completed(turn(paused.session, "paused"), "r", "c"))
        found = await one.get("s")
        assert found is not None
        assert found.labels == {"a": "changed"}


async def test_a_request_that_is_committed_while_another_replica_takes_its_session_runs_once(
    postgres: Server,
) -> None:
    """The commit of a replica whose lease is over comes between the look and the taking."""
    async with two(postgres) as (one, other, conninfo):
        await create(one)
        begun = await one.begin_turn("s", "r", 1)
        assert begun.session is not None
        end_leases(conninfo)
        with psycopg.connect(conninfo) as db:
            # The commit waits behind this lock, and the taking behind the commit.
            db.execute("SELECT FROM sessions WHERE id = 's' FOR UPDATE")
            commit = completed(turn(begun.session, "a"), "r", "c1")
            committing = asyncio.create_task(one.commit(commit))
            await waiting_for_locks(conninfo, 1)
            taking = asyncio.create_task(other.begin_turn("s", "r", 2))
            await waiting_for_locks(conninfo, 2)
            db.rollback()
        await committing
        seen = await taking
        assert seen.idempotency_record is not None
        assert seen.idempotency_record.completion_id == "c1"
        await other._lease.renew()
        assert (await one.begin_turn("s", "", 3)).session is not None  # it was given back


async def test_a_paused_replica_does_not_give_back_what_another_one_has(postgres: Server) -> None:
    async with two(postgres) as (one, other, conninfo):
        await create(one)
        await one.begin_turn("s", "", 1)
        end_leases(conninfo)
        await other.begin_turn("s", "", 1)
        execute(conninfo, "UPDATE replicas SET until = clock_timestamp() + interval '1 minute'")
        await one.touch("s", 2)
        with pytest.raises(SessionElsewhere):
            await one.begin_turn("s", "", 3)


async def test_a_session_that_was_ended_elsewhere_takes_no_commit(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        await create(one)
        begun = await one.begin_turn("s", "", 1)
        assert await other.end("s")
        assert begun.session is not None
        with pytest.raises(SessionNotFound):
            await one.commit(turn(begun.session, "a"))


async def test_a_new_session_with_the_id_of_an_ended_one_takes_no_commit_of_it(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, _):
        await create(one)
        begun = await one.begin_turn("s", "", 1)
        assert await other.end("s")
        await create(other)
        await other.begin_turn("s", "", 1)
        await other.touch("s", 1)
        assert begun.session is not None
        with pytest.raises(OwnershipLost):
            await one.commit(completed(turn(begun.session, "a"), "r", "c"))
        assert not await other.exchanges("s", 0)


async def test_a_change_of_a_session_that_another_replica_uses_or_has_changed_is_refused(
    postgres: Server,
) -> None:
    events: list[Event] = []
    async with two(postgres, events.append) as (one, other, conninfo):
        made = await create(one)
        await one.begin_turn("s", "", 1)
        begun = await other.get("s")
        assert begun is not None
        with pytest.raises(SessionElsewhere):
            await other.commit(turn(begun, "appended"))
        assert of_replicas(events) == [WriteFenced("s", "in_use")]
        end_leases(conninfo)
        with pytest.raises(SessionChanged):
            await other.commit(turn(made, "appended"))
        assert of_replicas(events)[1:] == [WriteFenced("s", "changed")]
        await other.commit(turn(begun, "appended"))
        assert texts(await other.exchanges("s", 0)) == ["appended", "re: appended"]


async def test_two_replicas_cannot_create_the_same_session(postgres: Server) -> None:
    async with two(postgres) as (one, other, _):
        outcomes = await asyncio.gather(
            *(each.commit(Commit(session(), create=True)) for each in (one, other) * 5),
            return_exceptions=True,
        )
        assert sum(not isinstance(each, SessionExists) for each in outcomes) == 1


async def test_a_first_turn_in_a_session_that_another_replica_has_created_is_fenced(
    postgres: Server,
) -> None:
    events: list[Event] = []
    async with two(postgres, events.append) as (one, other, _):
        await create(one)
        with pytest.raises(OwnershipLost):
            first = completed(turn(session(), "a"), "r", "c")
            await other.commit(replace(first, create=True))
        assert of_replicas(events) == [WriteFenced("s", "created")]


async def test_a_session_that_was_given_back_is_not_taken_over(postgres: Server) -> None:
    events: list[Event] = []
    async with two(postgres, events.append) as (one, other, conninfo):
        await create(one)
        begun = await one.begin_turn("s", "", 1)
        assert begun.session is not None
        await one.commit(turn(begun.session, "a"))
        end_leases(conninfo)
        await other.begin_turn("s", "", 2)
        await other.begin_turn("s", "", 3)  # its own
        assert not of_replicas(events)


async def test_sessions_of_a_living_replica_are_neither_evicted_nor_expired(
    postgres: Server,
) -> None:
    async with two(postgres) as (one, other, conninfo):
        await create(one, "used", idle=10)
        await create(one, "idle", idle=10)
        await one.begin_turn("used", "", 1)
        assert await other.expire(50, ()) == ["idle"]
        made = session("new", now=50)
        assert not await other.commit(Commit(made, create=True, max_sessions=1, now=50))
        end_leases(conninfo)
        made = session("newer", now=50)
        gone = await other.commit(Commit(made, create=True, max_sessions=1, now=50))
        assert [*gone] == [*expired("used"), *evicted("new")]


async def test_a_replica_that_ends_gives_its_sessions_back(postgres: Server) -> None:
    conninfo = postgres.new_schema()
    async with replica(conninfo) as other:
        async with replica(conninfo) as one:
            await create(one)
            await one.begin_turn("s", "", 1)
        assert (await other.begin_turn("s", "", 1)).session is not None
        assert len(execute(conninfo, "SELECT id FROM replicas")) == 1


async def test_nothing_begins_while_the_lease_is_over_by_the_own_clock(postgres: Server) -> None:
    conninfo = postgres.new_schema()
    async with replica(conninfo, lease=1.0) as store:
        await create(store)
        store._lease._until = 0.0
        with pytest.raises(StoreUnavailable, match="lease"):
            await store.begin_turn("s", "", 1)
        async with asyncio.timeout(WAIT_SECONDS):  # the next renewal
            while not store._lease.is_valid:  # noqa: ASYNC110  # the renewal tells nobody
                await asyncio.sleep(0.05)
        assert (await store.begin_turn("s", "", 1)).session is not None


@pytest.mark.parametrize("answered", [True, False])
async def test_a_commit_whose_answer_is_lost_is_committed_once(
    postgres: Server,
    answered: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    events: list[Event] = []
    async with linked(postgres, events.append) as (store, link, _):
        await create(store)
        for number in range(10):  # with and without prepared statements
            begun = await store.begin_turn("s", f"r{number}", 1)
            assert begun.session is not None
            link.marker, link.answered = f"completion-{number}!".encode(), answered
            commit = turn(begun.session, f"said {number}!")
            await store.commit(completed(commit, f"r{number}", f"completion-{number}!"))
            assert await store.completion(f"completion-{number}!") is not None
        assert link.broken == 10
        outcome = "written" if answered else "repeated"
        assert of_replicas(events) == [UncertainWriteEnded("s", outcome)] * 10
        assert texts(await store.exchanges("s", 0))[::2] == [f"said {n}!" for n in range(10)]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("marker", [b"Be marked.", b"COMMIT"])
async def test_a_creation_whose_answer_is_lost_happens_once(
    postgres: Server,
    marker: bytes,
    answered: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    events: list[Event] = []
    async with linked(postgres, events.append) as (store, link, conninfo):
        link.marker, link.answered = marker, answered
        made = session("s", system_prompt="Be marked.")
        await store.commit(Commit(made, ((0, Message(Role.USER, "a")),), create=True))
        assert link.broken == 1
        assert execute(conninfo, "SELECT count(*) FROM sessions") == [(1,)]
        with pytest.raises(SessionExists):
            await store.commit(Commit(made, create=True))
        outcome = "written" if answered and marker == b"COMMIT" else "repeated"
        assert of_replicas(events) == [UncertainWriteEnded("s", outcome)]


async def test_reads_and_turns_do_not_notice_that_all_connections_were_broken(
    postgres: Server,
) -> None:
    async with linked(postgres) as (store, link, _):
        made = await create(store, "s", "a")
        await asyncio.gather(*(store.get("s") for _ in range(50)))  # all connections are open
        link.is_down = True
        link.is_down = False
        assert await store.get("s") == made
        link.is_down = True
        link.is_down = False
        assert (await store.begin_turn("s", "", 1)).session is not None


async def test_the_store_is_down_while_there_is_no_way_to_the_server_and_up_after_it(
    postgres: Server,
) -> None:
    conninfo = postgres.new_schema()
    events: list[Event] = []

    with tempfile.TemporaryDirectory(prefix="ruvd-link-", dir="/tmp") as directory:
        link = Link(Path(directory), postgres.directory)
        async with (
            link.running(),
            replica(link.conninfo(conninfo), timeout=2.0, observer=events.append) as store,
        ):
            made = await create(store, "s", "a")
            link.is_down = True
            with pytest.raises(StoreUnavailable):
                await store._lease.renew()
            with pytest.raises(StoreUnavailable):
                await store.get("s")
            with pytest.raises(StoreUnavailable):
                await store.commit(turn(made, "b"))
            link.is_down = False
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    try:
                        assert await store.get("s") == made
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)
            await talk(store, made, "b")
    states = [each.up for each in events if isinstance(each, StoreStateChanged)]
    assert states == [True, False, True]
    assert of_replicas(events) == [UncertainWriteEnded("s", "unknown")]
    renewals = [each.failed for each in events if isinstance(each, LeaseRenewed)]
    assert renewals == [False, True]


async def test_a_daemon_starts_without_the_server_and_serves_once_it_is_there() -> None:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as server:
            server.stop()
            store = PostgresStore(
                server.conninfo(), clock=FrozenClock(), observer=ignore, timeout_seconds=1.0
            )
            with pytest.raises(StoreUnavailable):
                await store.open()
            server.start()
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    try:
                        assert await store.get("s") is None
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)
            made = await create(store, "s", "a")
            server.stop(signal.SIGQUIT)  # a crash of the server
            server.start()
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    try:
                        assert await store.get("s") == made
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)
            await store.close()


async def test_what_deleted_sessions_leave_is_purged_but_for_what_forks_share(
    postgres: Server,
) -> None:
    async with two(postgres) as (store, _, conninfo):
        parent = await create(store, "p", "a", "b", "c")
        child = await fork(store, parent, "c", 2)
        await fork(store, child, "g", 1)
        await store.end("p")
        await store.end("c")
        await store.expire(0, ())
        assert texts(await store.exchanges("g", 0)) == ["a", "re: a"]
        assert execute(conninfo, "SELECT count(*) FROM messages") == [(2,)]
        await store.end("g")
        await store.expire(0, ())
        for table in ("messages", "receipts", "forks", "garbage"):
            assert not execute(conninfo, f"TABLE {table}"), table


async def test_a_newer_schema_is_refused(postgres: Server) -> None:
    async with two(postgres) as (_, _, conninfo):
        execute(conninfo, "UPDATE ruvd_schema SET version = 999")
        store = PostgresStore(conninfo, clock=FrozenClock(), observer=ignore)
        with pytest.raises(StoreUnavailable, match="newer ruvd"):
            await store.open()
        await store.close()


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Server) -> None:
    execute(
        postgres.conninfo(),
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    )
    conninfo = postgres.conninfo().replace("dbname=postgres", "dbname=latin")
    store = PostgresStore(conninfo, clock=FrozenClock(), observer=ignore)
    with pytest.raises(StoreUnavailable, match="UTF8"):
        await store.open()
    await store.close()


async def test_daemons_that_start_together_create_the_schema_once(postgres: Server) -> None:
    conninfo = postgres.new_schema()
    async with AsyncExitStack() as stack:
        stores = await asyncio.gather(
            *(stack.enter_async_context(replica(conninfo)) for _ in range(5))
        )
        await create(stores[0])
        assert await stores[4].get("s") is not None


async def test_no_turn_of_any_replica_misses_the_one_before_it(postgres: Server) -> None:
    """Replicas that lose their leases at random never fork a conversation or lose a turn."""
    conninfo = postgres.new_schema()
    choose = random.Random(7)
    acknowledged: dict[str, list[str]] = {name: [] for name in "abcd"}
    refused = 0

    async def caller(stores: list[PostgresStore], number: int) -> None:
        nonlocal refused
        for step in range(25):
            store, name = choose.choice(stores), choose.choice("abcd")
            try:
                begun = await store.begin_turn(name, "", 1)
                assert begun.session is not None
                assert begun.exchanges is not None
                saw = begun.session.message_count
                await asyncio.sleep(choose.random() / 100)
                commit = turn(begun.session, f"{number}.{step} after {saw}")
                await store.commit(completed(commit, "", f"{number}.{step}"))
            except (SessionElsewhere, OwnershipLost):
                refused += 1
            else:
                acknowledged[name].append(f"{number}.{step} after {saw}")

    async def paused(stores: list[PostgresStore]) -> None:
        for _ in range(40):
            await asyncio.sleep(choose.random() / 50)
            victim = choose.choice(stores)._lease.replica
            execute(conninfo, "UPDATE replicas SET until = now() WHERE id = %s", victim)
            await choose.choice(stores)._lease.renew()

    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(replica(conninfo)) for _ in range(3)]
        for name in "abcd":
            await create(stores[0], name)
        await asyncio.gather(paused(stores), *(caller(stores, number) for number in range(8)))
        for name in "abcd":
            found: list[Session | None] = [await store.get(name) for store in stores]
            assert found[0] == found[1] == found[2]
            said = texts(await stores[0].exchanges(name, 0))[::2]
            assert said == [
                f"{text.partition(' ')[0]} after {2 * n}" for n, text in enumerate(said)
            ]
            assert sorted(said) == sorted(acknowledged[name])
    assert refused
