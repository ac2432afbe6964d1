"""A call is answered by the replica that has its session, whichever replica it is sent to."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Files
from google.protobuf.duration_pb2 import Duration
from postgres import Server, running
from running import RunningDaemon, StartDaemon
from wire import contents, details, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

LEASE_SECONDS = 2.0
WAIT_SECONDS = 60
SLOW = ("--echo-delay-seconds", "0.1")
WORDS = "one two three four five six seven eight nine ten"
GRACE = Duration(seconds=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as started:
            yield started


@pytest.fixture
def store(server: Server) -> str:
    """The setting `store` of daemons that share an empty database."""
    conninfo = server.new_schema()
    schema = conninfo.partition("search_path=")[2].rstrip("'")
    return f"postgresql://ruvd@/postgres?host={server.directory}&options=-csearch_path%3D{schema}"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def peer_flags(files: Files) -> tuple[str, ...]:
    return (
        *("--peer-listen", "127.0.0.1:0", "--peer-tls-ca-file", str(files.ca)),
        *("--peer-tls-cert-file", str(files.certificate), "--peer-tls-key-file", str(files.key)),
    )


@asynccontextmanager
async def replicas(
    daemon: StartDaemon, folder: Path, store: str, count: int, *flags: str
) -> AsyncIterator[tuple[list[RunningDaemon], list[Any]]]:
    """Yields daemons that share a store, and stubs of them."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir(exist_ok=True)
            context = daemon(
                *("--engine", "echo", "--store", store, *flags),
                *("--store-lease-seconds", str(LEASE_SECONDS)),
                folder=place,
            )
            started.append(await stack.enter_async_context(context))
        yield started, [await stack.enter_async_context(each.stub()) for each in started]


async def until_delta(call: Any) -> list[pb.CompletionEvent]:
    """Reads a stream until its first delta."""
    read = []
    async for response in call:
        read.append(response.event)
        if response.event.HasField("delta"):
            return read
    raise AssertionError("the stream ended without a delta")


async def rest(call: Any) -> list[pb.CompletionEvent]:
    return [response.event async for response in call]


def texts(read: list[pb.CompletionEvent]) -> str:
    return "".join(each.delta.text for each in read)


async def reason(call: Any) -> str:
    """Returns the reason with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await rest(call)
        else:
            await call
    return details(caught.value)[0]


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
        long = stubs[0].Complete(turn(WORDS, "s"))
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
        call = stubs[0].Complete(turn(WORDS, "s", request_id="r"))
        await until_delta(call)
        cancel = pb.CancelCompletionRequest(session_id="s", request_id="r", keep_partial=True)
        await stubs[1].CancelCompletion(cancel)
        assert (await rest(call))[-1].finished.finish_reason == pb.FINISH_REASON_CANCELLED
        call = stubs[0].Complete(turn(WORDS, "s"))
        begun = await until_delta(call)
        cancel = pb.CancelCompletionRequest(completion_id=begun[0].started.completion_id)
        await stubs[1].CancelCompletion(cancel)
        assert await reason(call) == "COMPLETION_CANCELLED"
        call = stubs[0].Complete(turn(WORDS, "s"))
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
