"""Only replicas may forward calls, and only they are believed when they say who called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Files
from peer_replicas import (
    SLOW,
    WORDS,
    database,
    empty_store,
    peer_flags,
    reason,
    replicas,
    until_delta,
)
from postgres import Server
from running import RunningDaemon, StartDaemon
from tenant_calls import Tenant
from wire import say, turn

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

ANN = ("ruvd-peer-tenant-bin", b"ann"), ("ruvd-peer-role", "user")


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


async def peer_address(running: RunningDaemon) -> str:
    return str((await running.logged("listening for replicas"))["peer_address"])


async def refusal(
    address: str,
    ca: bytes,
    certificate: Sequence[bytes] = (),
    metadata: Sequence[tuple[str, str | bytes]] = (),
) -> tuple[grpc.StatusCode, str]:
    """Returns the code and the text with which a call at the listener for replicas fails."""
    chain, key = certificate or (None, None)
    credentials = grpc.ssl_channel_credentials(ca, key, chain)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = pb_grpc.SessionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSession(pb.GetSessionRequest(session_id="s"), metadata=metadata)
        return caught.value.code(), caught.value.details() or ""


async def test_the_listener_for_replicas_takes_marked_calls_of_replicas_only(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    flags = (*peer_flags(files), "--peer-tls-name", "localhost")
    async with replicas(daemon, tmp_path, store, 1, *flags) as (running, stubs):
        await say(stubs[0], "hello", "s")
        address, ca = await peer_address(running[0]), files.authority.pem
        mark = [("ruvd-peer-replica", "some-replica")]
        certificate = files.authority.issue("localhost")
        unavailable = grpc.StatusCode.UNAVAILABLE  # the connection fails
        assert (await refusal(address, ca, (), mark))[0] is unavailable
        foreign = Authority().issue("localhost")
        assert (await refusal(address, ca, foreign, mark))[0] is unavailable
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        assert (await refusal(address, ca, certificate))[0] is unauthenticated
        # A certificate of the same authority for something else.
        other = files.authority.issue("elsewhere")
        code, text = await refusal(address, ca, other, mark)
        assert (code, "localhost" in text) == (unauthenticated, True)
        # The replicas differ in whether callers have identities.
        assert (await refusal(address, ca, certificate, [*mark, *ANN]))[0] is unauthenticated
        # It is for a process that had this address before.
        code, text = await refusal(address, ca, certificate, mark)
        assert (code, text) == (grpc.StatusCode.ABORTED, "the session is not at this replica")


async def test_a_callers_tenant_goes_along_and_a_forged_one_is_ignored(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    made = [tokens.create(name, Role.USER) for name in ("ann", "bob")]
    file = tmp_path / "tokens"
    file.write_text("".join(f"{line}\n" for _, line in made))
    flags = (*peer_flags(files), *SLOW, "--tokens-file", str(file))
    async with replicas(daemon, tmp_path, store, 2, *flags) as (running, _):
        channels = [grpc.aio.insecure_channel(each.socket) for each in running]
        ann, ann_elsewhere = [Tenant(channel, made[0][0]) for channel in channels]
        bob = Tenant(channels[1], made[1][0])
        await say(ann, "hello", "s")
        call = ann.Complete(turn(" ".join([WORDS] * 6), "s", request_id="r"))
        begun = await until_delta(call)
        completion_id = begun[0].started.completion_id
        resume = pb.ResumeCompletionRequest(completion_id=completion_id)
        # Bob has no such session and no such completion, wherever he asks.
        assert await reason(bob.ResumeCompletion(resume)) == "COMPLETION_NOT_FOUND"
        assert await reason(bob.GetSession(pb.GetSessionRequest(session_id="s"))) == (
            "SESSION_NOT_FOUND"
        )
        forged: Any = pb_grpc.SessionServiceStub(channels[1])
        replica = (await running[0].logged("replica joined"))["replica"]
        metadata = [
            ("authorization", f"Bearer {made[1][0]}"),
            ("ruvd-peer-replica", replica),
            *ANN,
        ]
        for number in (0, 1):
            forged = pb_grpc.SessionServiceStub(channels[number])
            asked = forged.ResumeCompletion(resume, metadata=metadata)
            assert await reason(asked) == "COMPLETION_NOT_FOUND"
        bare = forged.ResumeCompletion(resume, metadata=metadata[1:])
        assert await reason(bare) == "UNAUTHENTICATED"
        # Ann reaches what is hers through both, also one session of the same name for Bob.
        busy = turn("x", "s", if_busy=pb.IF_BUSY_REJECT)
        assert await reason(ann_elsewhere.Complete(busy)) == "SESSION_BUSY"
        assert (await say(bob, "mine", "s")).exchange_count == 1
        cancel = pb.CancelCompletionRequest(completion_id=completion_id)
        await ann_elsewhere.CancelCompletion(cancel)
        assert await reason(call) == "COMPLETION_CANCELLED"
        for channel in channels:
            await channel.close()


async def test_a_renewed_certificate_is_used_for_calls_to_other_replicas(
    daemon: StartDaemon, store: str, files: Files, tmp_path: Path
) -> None:
    async with replicas(daemon, tmp_path, store, 2, *peer_flags(files), *SLOW) as (running, stubs):
        await say(stubs[0], "begin", "s")
        call = stubs[0].Complete(turn(" ".join([WORDS] * 60), "s", request_id="r"))
        await until_delta(call)
        busy = turn("x", "s", if_busy=pb.IF_BUSY_REJECT)
        assert await reason(stubs[1].Complete(busy)) == "SESSION_BUSY"
        # A call that is forwarded goes on over the connection with the old certificate.
        forwarded = stubs[1].Complete(turn(" ".join([WORDS] * 60), "s", request_id="r"))
        await until_delta(forwarded)
        files.issue("server", "localhost", "127.0.0.1")
        for each in running:
            await each.logged("changed files are in use")
        again = stubs[1].Complete(turn(" ".join([WORDS] * 60), "s", request_id="r"))
        await until_delta(again)
        await until_delta(forwarded)
        await stubs[1].CancelCompletion(pb.CancelCompletionRequest(session_id="s", request_id="r"))
        assert await reason(forwarded) == "COMPLETION_CANCELLED"
