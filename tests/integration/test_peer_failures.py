"""Replicas die, freeze and restart while calls are forwarded, and no turn is lost or doubled."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from certificates import Files
from peer_replicas import (
    GRACE,
    LEASE_SECONDS,
    SLOW,
    WORDS,
    database,
    empty_store,
    failure,
    peer_flags,
    reason,
    replicas,
    rest,
    until_delta,
)
from postgres import Server
from running import StartDaemon
from wire import contents, details, say, turn

from ruvd.v1 import session_service_pb2 as pb

WAIT_SECONDS = 60


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


async def test_a_stream_is_resumed_elsewhere_after_the_forwarder_was_killed(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 3, *flags) as (running, stubs):
        await say(stubs[0], "begin", "s")
        request = turn(WORDS, "s", request_id="r", disconnect_grace=GRACE)
        own = stubs[0].Complete(request)
        begun = await until_delta(own)
        own.cancel()  # only the forwarded reader is left
        call = stubs[1].Complete(request)
        read = await until_delta(call)
        running[1].kill()
        lost = await failure(call)
        assert lost.code() is grpc.StatusCode.UNAVAILABLE
        assert details(lost)[0] == ""
        resume = pb.ResumeCompletionRequest(
            completion_id=begun[0].started.completion_id, after_sequence=read[-1].sequence
        )
        resumed = await rest(stubs[2].ResumeCompletion(resume))
        assert resumed[-1].finished.message.content == WORDS
        sequences = [each.sequence for each in read + resumed]
        assert sequences == list(range(1, len(sequences) + 1))
        assert await contents(stubs[2], "s") == ["begin", "begin", WORDS, WORDS]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_request_whose_owner_is_gone_is_finished_elsewhere(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path, how: signal.Signals
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 3, *flags) as (running, stubs):
        await say(stubs[0], "begin", "s")
        long = turn(" ".join([WORDS] * 20), "s", request_id="r", disconnect_grace=GRACE)
        own = stubs[0].Complete(long)
        begun = await until_delta(own)
        call = stubs[1].Complete(long)
        await until_delta(call)
        running[0].process.send_signal(how)
        gone = time.monotonic()
        try:
            lost = await failure(call)
            print(f"lost after {time.monotonic() - gone:.2f} s")
            assert lost.code() is grpc.StatusCode.UNAVAILABLE
            assert details(lost)[0] == ""  # upon which clients resume
            resume = pb.ResumeCompletionRequest(completion_id=begun[0].started.completion_id)
            assert await reason(stubs[1].ResumeCompletion(resume)) == "COMPLETION_NOT_FOUND"
            print(f"resumed after {time.monotonic() - gone:.2f} s")
            # Upon which they repeat the request. One that does not wait is refused meanwhile.
            refused = turn("x", "s", if_busy=pb.IF_BUSY_REJECT)
            if time.monotonic() - gone < LEASE_SECONDS / 2:
                assert await reason(stubs[2].Complete(refused)) == "SESSION_BUSY"
            again = stubs[2].Complete(long)
            await until_delta(again)
            took = time.monotonic() - gone
            again.cancel()
            assert took < WAIT_SECONDS
            print(f"{how.name}: {took:.2f} s")
        finally:
            if running[0].process.returncode is None and how is signal.SIGSTOP:
                running[0].process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("takes", ["interrupt", "end"])
async def test_a_session_is_taken_from_an_owner_that_cannot_be_reached(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path, takes: str
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 2, *flags) as (running, stubs):
        await say(stubs[0], "begin", "s")
        call = stubs[0].Complete(turn(" ".join([WORDS] * 20), "s", request_id="r"))
        await until_delta(call)
        running[0].kill()
        await failure(call)
        began = time.monotonic()
        if takes == "interrupt":
            taken = await say(stubs[1], "mine", "s", if_busy=pb.IF_BUSY_INTERRUPT)
            assert taken.exchange_count == 2
        else:
            await stubs[1].EndSession(pb.EndSessionRequest(session_id="s"))
            missing = stubs[1].GetSession(pb.GetSessionRequest(session_id="s"))
            assert await reason(missing) == "SESSION_NOT_FOUND"
        assert time.monotonic() - began < WAIT_SECONDS - 10  # long before the lease is over


async def test_a_caller_that_leaves_the_forwarder_leaves_the_owner(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), *SLOW)
    async with replicas(daemon, tmp_path, store, 2, *flags) as (_, stubs):
        await say(stubs[0], "begin", "s")
        long = turn(" ".join([WORDS] * 60), "s", request_id="r")
        own = stubs[0].Complete(long)
        await until_delta(own)
        call = stubs[1].Complete(long)
        await until_delta(call)
        own.cancel()
        call.cancel()  # the last reader, without a grace period
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found = await stubs[0].GetSession(pb.GetSessionRequest(session_id="s"))
                if not found.session.running_completion_id:
                    break
                await asyncio.sleep(0.05)
        assert await contents(stubs[0], "s") == ["begin", "begin"]
