"""A call is answered by the replica that has its session, whichever replica it is sent to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from certificates import Files
from parts import answer_of
from peer_replicas import (
    GRACE,
    SLOW,
    WORDS,
    database,
    empty_store,
    failure,
    peer_flags,
    reason,
    replicas,
    rest,
    texts,
    until_delta,
)
from postgres import Server
from running import StartDaemon
from wire import contents, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

# An answer that takes longer than what a test does meanwhile.
LONG = " ".join([WORDS] * 60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with database() as started:
        yield started


@pytest.fixture
def store(server: Server) -> str:
    return empty_store(server)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_a_repeated_and_a_resumed_completion_have_the_events_of_their_owner(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 3, *flags) as (_, stubs):
        request = turn(WORDS, "s", request_id="r", disconnect_grace=GRACE)
        first = stubs[0].Complete(request)
        begun = await until_delta(first)
        started = begun[0].started
        # While it runs, although the session is not stored yet.
        repeat = asyncio.create_task(events(stubs[1], request))
        by_id = pb.ResumeCompletionRequest(completion_id=started.completion_id)
        by_request = pb.ResumeCompletionRequest(session_id="s", request_id="r", after_sequence=1)
        resumed = [
            asyncio.create_task(rest(stub.ResumeCompletion(each)))
            for stub in stubs
            for each in (by_id, by_request)
        ]
        told = begun + await rest(first)
        assert told[-1].finished.message.content == WORDS
        for read in [await repeat, *await asyncio.gather(*resumed)]:
            assert texts(read) == texts(told)
            assert read[-1] == told[-1]
        # And afterwards, when the events of each reader are equal.
        after = await rest(stubs[0].ResumeCompletion(by_id))
        for stub in stubs:
            assert await rest(stub.ResumeCompletion(by_id)) == after
            assert await rest(stub.ResumeCompletion(by_request)) == after[1:]
            assert await events(stub, request) == after
        assert await contents(stubs[1], "s") == [WORDS, WORDS]


async def test_a_busy_session_means_the_same_at_every_replica(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 3, *flags) as (_, stubs):
        await say(stubs[0], "begin", "s")
        long = stubs[0].Complete(turn(LONG, "s"))
        await until_delta(long)
        session = (await stubs[1].GetSession(pb.GetSessionRequest(session_id="s"))).session
        assert session.running_completion_id
        refused = stubs[1].Complete(turn("x", "s", if_busy=pb.IF_BUSY_REJECT))
        assert await reason(refused) == "SESSION_BUSY"
        # These wait in the order in which they come, in the owner's queue.
        queued = stubs[1].Complete(turn("second", "s"))
        append = pb.AppendMessagesRequest(
            session_id="s", messages=[pb.Message(role=pb.ROLE_USER, content="note")]
        )
        update = pb.UpdateSessionRequest(session_id="s", labels={"a": "b"})
        changes = asyncio.gather(stubs[2].AppendMessages(append), stubs[2].UpdateSession(update))
        # The one that interrupts comes before all of them.
        taking = asyncio.create_task(say(stubs[2], "third", "s", if_busy=pb.IF_BUSY_INTERRUPT))
        assert await reason(long) == "COMPLETION_INTERRUPTED"
        await taking
        assert (await rest(queued))[-1].finished
        await changes
        said = await contents(stubs[0], "s")
        assert sorted(said) == sorted(
            ["begin", "begin", "second", "second", "note", "third", "third"]
        )
        assert said[2] == "third"


@pytest.mark.parametrize("is_stored", [False, True])
async def test_a_completion_is_cancelled_and_its_session_ended_through_another_replica(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path, *, is_stored: bool
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        if is_stored:
            await say(stubs[0], "begin", "s")
        call = stubs[0].Complete(turn(LONG, "s", request_id="r"))
        await until_delta(call)
        cancel = pb.CancelCompletionRequest(session_id="s", request_id="r", keep_partial=True)
        await stubs[1].CancelCompletion(cancel)
        assert (await rest(call))[-1].finished.finish_reason == pb.FINISH_REASON_CANCELLED
        call = stubs[0].Complete(turn(LONG, "s"))
        begun = await until_delta(call)
        cancel = pb.CancelCompletionRequest(completion_id=begun[0].started.completion_id)
        await stubs[1].CancelCompletion(cancel)
        assert await reason(call) == "COMPLETION_CANCELLED"
        call = stubs[0].Complete(turn(LONG, "s"))
        await until_delta(call)
        await stubs[1].EndSession(pb.EndSessionRequest(session_id="s"))
        assert await reason(call) == "SESSION_ENDED"
        missing = stubs[0].GetSession(pb.GetSessionRequest(session_id="s"))
        assert await reason(missing) == "SESSION_NOT_FOUND"


async def test_a_stateless_completion_is_resumed_through_another_replica(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        call = stubs[0].Complete(turn(WORDS))
        begun = await until_delta(call)
        resume = pb.ResumeCompletionRequest(completion_id=begun[0].started.completion_id)
        read = await rest(stubs[1].ResumeCompletion(resume))
        assert read[-1] == (await rest(call))[-1]
        assert texts(read) == WORDS
        unknown = pb.ResumeCompletionRequest(completion_id="cmpl-AAAAAAAA.x")
        assert await reason(stubs[1].ResumeCompletion(unknown)) == "COMPLETION_NOT_FOUND"
        old = pb.ResumeCompletionRequest(completion_id="cmpl-AAAAAAAAAAAAAAAAAAAAAAAA")
        assert await reason(stubs[1].ResumeCompletion(old)) == "COMPLETION_NOT_FOUND"


async def test_errors_and_deadlines_are_those_of_the_owner(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        await say(stubs[0], "begin", "s")
        long = stubs[0].Complete(turn(LONG, "s", request_id="r"))
        await until_delta(long)
        for wrong in (
            turn("c", "s", request_id="r"),
            turn("c", "s", if_busy=pb.IF_BUSY_REJECT),
        ):
            at_owner, refused = [await failure(stub.Complete(wrong)) for stub in stubs]
            assert refused.code() is at_owner.code()
            assert refused.details() == at_owner.details()
            assert refused.trailing_metadata() == at_owner.trailing_metadata()
        waiting = await failure(stubs[1].Complete(turn("a", "s"), timeout=3))
        assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        cancel = pb.CancelCompletionRequest(session_id="s", request_id="r")
        await stubs[1].CancelCompletion(cancel)
        assert await reason(long) == "COMPLETION_CANCELLED"
        # What waited has gone from the owner's queue, which gives the session back.
        assert (await say(stubs[1], "next", "s")).exchange_count == 2


async def test_an_answer_in_parts_is_forwarded_and_a_slow_reader_holds_up_nobody(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), "--max-message-bytes", "4000000", "--max-log-bytes", "8000000")
    async with replicas(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        large = "x" * 3_500_000
        request = turn(large, "s", request_id="r")
        told = await events(stubs[0], request)
        assert answer_of(told).content == large
        # Its reader takes nothing for now, while others use the same connection.
        slow = stubs[1].Complete(request)
        slow_events = aiter(slow)
        await anext(slow_events)
        small = turn("small", "t", request_id="r")
        assert await events(stubs[0], small) == await events(stubs[1], small)
        assert answer_of([each.event async for each in slow_events]).content == large
