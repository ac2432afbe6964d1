"""No tenant evicts another one's session, and an evicted or expired session is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from running import StartDaemon
from tenant_calls import tenants
from wire import contents, details, say, turn

from ruvd.v1 import session_service_pb2 as pb

FLAGS = ("--engine", "echo")
MOMENT = Duration(nanos=1_000_000)


async def reason(call: Any) -> str:
    """The reason with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return details(failed.value)[0]


async def refused(call: Any) -> tuple[grpc.StatusCode, str, bool]:
    """The code and the reason of a refusal, and whether it says how long to wait."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    found, _, seconds = details(failed.value)
    return failed.value.code(), found, bool(seconds)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_hundred_sessions_of_one_tenant_evict_nobody_of_another_and_victims_are_told(
    daemon: StartDaemon, tmp_path: Path, store: str
) -> None:
    where = "memory" if store == "memory" else f"sqlite:{tmp_path}/s.db"
    flags = (*FLAGS, "--store", where, "--max-sessions", "10")
    async with tenants(daemon, tmp_path, *flags, limits=["*;max_sessions=5"]) as (_, ann, bob):
        for number in range(5):
            await say(ann, f"said {number}", f"s{number}")
        for _ in range(5):
            # The same ids as ann's, and others.
            calls = (
                bob.CreateSession(pb.CreateSessionRequest(session_id=name))
                for number in range(10)
                for name in (f"s{number}", f"t{number}")
            )
            await asyncio.gather(*calls, return_exceptions=True)
        await say(bob, "the last one", "mine")
        for number in range(5):
            assert (await contents(ann, f"s{number}"))[0] == f"said {number}"
            await say(ann, "and on", f"s{number}", require_existing=True)
        listed = await bob.ListSessions(pb.ListSessionsRequest())
        assert len(listed.sessions) == 5
        there = {session.id for session in listed.sessions}
        victim = next(f"s{number}" for number in range(10) if f"s{number}" not in there)

        assert await refused(say(bob, "go on", victim)) == (
            grpc.StatusCode.NOT_FOUND,
            "SESSION_EVICTED",
            False,
        )
        # Reads say as before that there is none; ann's session of that id is no business of bob's.
        assert await reason(contents(bob, victim)) == "SESSION_NOT_FOUND"
        assert await reason(say(bob, "go on", victim, require_existing=True)) == "SESSION_EVICTED"
        append = pb.AppendMessagesRequest(session_id=victim, messages=turn("x").messages)
        assert await reason(bob.AppendMessages(append)) == "SESSION_EVICTED"
        fork = pb.ForkSessionRequest(session_id=victim)
        assert await reason(bob.ForkSession(fork)) == "SESSION_EVICTED"
        items = [turn("x", victim), turn("y"), turn("z", victim, recreate_if_gone=True)]
        request = pb.BatchCompleteRequest(items=items, max_concurrency=1)
        results = [each async for each in bob.BatchComplete(request)]
        failed = [each.result.index for each in results if each.result.HasField("error")]
        assert failed == [0]
        assert await contents(bob, victim) == ["z", "z"]
        await say(bob, "and now", victim)


async def test_a_tenant_that_has_no_session_to_give_is_refused_at_a_full_daemon(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--store", "memory", "--max-sessions", "3")
    async with tenants(daemon, tmp_path, *flags, limits=[]) as (running, ann, bob):
        for number in range(4):
            await say(ann, "mine", f"s{number}")
        limit = grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT", True
        assert await refused(say(bob, "hi", "s")) == limit
        assert await refused(bob.CreateSession(pb.CreateSessionRequest())) == limit
        assert await reason(say(ann, "hi", "s0")) == "SESSION_EVICTED"
        # Another tenant's tombstones are not visible: for bob there never was such a session.
        assert await reason(say(bob, "hi", "s0", require_existing=True)) == "SESSION_NOT_FOUND"
        await ann.EndSession(pb.EndSessionRequest(session_id="s1"))
        await say(bob, "hi", "s0")
        assert any("one tenant may have all sessions" in each["event"] for each in running.log)


@pytest.mark.parametrize("at_limit", ["evict", "refuse"])
async def test_at_its_own_limit_a_tenant_loses_its_oldest_session_or_is_refused(
    daemon: StartDaemon, tmp_path: Path, at_limit: str
) -> None:
    flags = (*FLAGS, "--store", f"sqlite:{tmp_path}/s.db", "--at-session-limit", at_limit)
    async with tenants(daemon, tmp_path, *flags, limits=["ann;max_sessions=2"]) as (_, ann, _):
        for name in ("old", "new"):
            await say(ann, "hi", name)
        history = turn("imported").messages
        fork = pb.ForkSessionRequest(session_id="new", new_session_id="c")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "a": lambda: say(ann, "hi", "a"),
            "b": lambda: ann.CreateSession(
                pb.CreateSessionRequest(session_id="b", messages=history)
            ),
            "c": lambda: ann.ForkSession(fork),
        }
        for name, call in calls.items():
            if at_limit == "refuse":
                quota = grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", True
                assert await refused(call()) == quota
                continue
            await say(ann, "hi", "new")  # so that it is not the least recently used one
            await call()
            listed = await ann.ListSessions(pb.ListSessionsRequest())
            assert {each.id for each in listed.sessions} == {"new", name}


async def test_stored_bytes_are_bounded_on_every_path_and_also_for_turns_at_once(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--store", f"sqlite:{tmp_path}/s.db")
    limits = ["ann;max_stored_bytes=10000"]
    async with tenants(daemon, tmp_path, *flags, limits=limits) as (_, ann, bob):
        calls = (say(ann, "x" * 2000, f"s{number}") for number in range(20))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failures = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert {details(each)[0] for each in failures} == {"QUOTA_EXCEEDED"}
        # The echoed answers come on top of the messages.
        assert len(outcomes) - len(failures) in (2, 3, 4, 5)
        big = turn("x" * 9000).messages
        kept = (await ann.ListSessions(pb.ListSessionsRequest())).sessions[0].id
        quota = grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", True
        for call in (
            ann.CreateSession(pb.CreateSessionRequest(messages=big)),
            ann.CreateSession(pb.CreateSessionRequest(system_prompt="x" * 9000)),
            ann.AppendMessages(pb.AppendMessagesRequest(session_id=kept, messages=big)),
            say(ann, "x" * 9000, kept),
        ):
            assert await refused(call) == quota
        while True:
            try:
                await ann.ForkSession(pb.ForkSessionRequest(session_id=kept))
            except grpc.aio.AioRpcError as error:
                assert details(error)[0] == "QUOTA_EXCEEDED"  # noqa: PT017  # forks until then
                break
        for session in (await ann.ListSessions(pb.ListSessionsRequest())).sessions:
            await ann.EndSession(pb.EndSessionRequest(session_id=session.id))
        await say(ann, "x" * 4000, "again")
        await say(bob, "x" * 9000, "s")


async def test_tombstones_outlive_the_daemon_and_an_expired_session_is_told_before_the_sweep(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--store", f"sqlite:{tmp_path}/s.db", "--max-sessions", "2")
    slow = ("--sweep-interval-seconds", "1e6")
    async with daemon(*flags, *slow) as first, first.stub() as stub:
        for name in ("evicted", "ended", "third"):
            await say(stub, "hi", name)
        await stub.EndSession(pb.EndSessionRequest(session_id="ended"))
        expired = pb.CreateSessionRequest(session_id="expired", idle_timeout=MOMENT)
        await stub.CreateSession(expired)
        await asyncio.sleep(0.05)  # its whole idle time and more
        assert await reason(say(stub, "hi", "expired")) == "SESSION_EXPIRED"
        assert await reason(contents(stub, "expired")) == "SESSION_NOT_FOUND"
    async with daemon(*flags, *slow) as second, second.stub() as stub:
        assert await reason(say(stub, "hi", "evicted")) == "SESSION_EVICTED"
        assert await reason(say(stub, "hi", "expired")) == "SESSION_EXPIRED"
        await say(stub, "hi", "ended")  # a new session, as nobody misses an ended one
        await stub.CreateSession(pb.CreateSessionRequest(session_id="evicted"))
        await say(stub, "hi", "evicted", require_existing=True)
        await say(stub, "new", "expired", recreate_if_gone=True)
        assert await contents(stub, "expired") == ["new", "new"]
    off = (*flags, "--gone-session-retention-seconds", "0")
    async with daemon(*off) as third, third.stub() as stub:
        listed = await stub.ListSessions(pb.ListSessionsRequest())
        (gone,) = {"evicted", "expired", "ended"} - {each.id for each in listed.sessions}
        await say(stub, "hi", gone)


async def test_the_next_turn_after_an_end_begins_a_new_session_although_the_old_one_was_evicted(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--store", f"sqlite:{tmp_path}/s.db", "--max-sessions", "1")
    async with daemon(*flags) as running, running.stub() as stub:
        await say(stub, "hi", "a")
        await say(stub, "hi", "b")
        end = pb.EndSessionRequest(session_id="a")
        assert await reason(stub.EndSession(end)) == "SESSION_NOT_FOUND"
        await say(stub, "hi", "a")
        only = pb.CompleteRequest(messages=turn("x").messages, recreate_if_gone=True)
        assert await reason(anext(aiter(stub.Complete(only)))) == "INVALID_REQUEST"
