"""A tenant beyond its quotas is refused with a reason, and the others notice nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from answers import STALL, text
from google.rpc import error_details_pb2, status_pb2
from running import RunningDaemon, StartDaemon
from tenant_calls import Tenant, tenants
from upstream import Upstream, serving
from wire import say, turn

from ruvd.v1 import session_service_pb2 as pb

MOST = 2  # of ann's completions
FLOOD = 50 * MOST
SECONDS = 60.0


def quota(error: grpc.aio.AioRpcError) -> tuple[str, str, float]:
    """The reason of a refusal, its quota, and the seconds to wait."""
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return info.reason, info.metadata["quota"], retry.retry_delay.ToNanoseconds() / 1e9


async def refusal(tenant: Tenant, request: pb.CompleteRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await say(tenant, "", "") if request is None else [
            each async for each in tenant.Complete(request)
        ]
    return error.value


class Flood:
    """Callers of ann's that repeat each refused call at once, while its answers never end."""

    def __init__(self, ann: Tenant, upstream: Upstream) -> None:
        self._ann = ann
        self._upstream = upstream
        self.refusals: set[tuple[str, str, float]] = set()
        self._count = 0
        self._has_begun = asyncio.Event()

    async def _caller(self) -> None:
        while True:
            error = await refusal(self._ann, turn("flood"))
            self.refusals.add(quota(error))
            self._count += 1
            if self._count == FLOOD:
                self._has_begun.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        held = [self._ann.Complete(turn("endless")) for _ in range(MOST)]
        await asyncio.gather(*(anext(aiter(call)) for call in held))
        await self._upstream.asked(MOST, SECONDS)
        callers = [asyncio.create_task(self._caller()) for _ in range(FLOOD)]
        try:
            async with asyncio.timeout(SECONDS):
                await self._has_begun.wait()
            yield
        finally:
            for each in callers:
                each.cancel()
            await asyncio.wait(callers)
            for call in held:
                call.cancel()


def endless_for_ann(upstream: Upstream) -> None:
    upstream.answer = lambda asked: (
        [*text("so far")[:1], STALL] if asked.last == "endless" else text("fine")
    )


@pytest.mark.parametrize("slots", [None, MOST + 1])
async def test_beside_a_tenant_at_fifty_times_its_quota_all_calls_of_others_are_answered(
    daemon: StartDaemon, tmp_path: Path, slots: int | None
) -> None:
    async with serving() as upstream:
        endless_for_ann(upstream)
        flags = ["--engine", "openai", "--base-url", upstream.url, "--model", "m"]
        if slots:
            flags += ["--max-parallel", str(slots)]
        limits = [f"ann;max_inflight={MOST}"]
        async with tenants(daemon, tmp_path, *flags, limits=limits) as (_, ann, bob):
            flood = Flood(ann, upstream)
            async with flood.running(), asyncio.timeout(SECONDS):
                for number in range(20):
                    done = await say(bob, f"turn {number}", "s")
                    assert done.message.content == "fine"
                items = [turn(f"item {number}") for number in range(5)]
                batch = bob.BatchComplete(pb.BatchCompleteRequest(items=items))
                last = [each async for each in batch][-1].summary
                assert (last.succeeded, last.failed) == (5, 0)
            assert flood.refusals == {("QUOTA_EXCEEDED", "max_inflight", 1.0)}
            last_asked = [each.last for each in upstream.requests]
            assert last_asked.count("flood") == 0, "nothing of the flood reached the engine"


async def test_the_next_free_slot_is_not_the_floods(daemon: StartDaemon, tmp_path: Path) -> None:
    async with serving() as upstream:
        flags = ["--engine", "openai", "--base-url", upstream.url, "--model", "m"]
        flags += ["--max-parallel", "1"]
        gate = asyncio.Event()
        upstream.answer = lambda _: [gate, *text("fine")]
        async with tenants(daemon, tmp_path, *flags, limits=[]) as (_, ann, bob):
            flood = [asyncio.create_task(say(ann, f"flood {number}")) for number in range(30)]
            await upstream.asked(1, SECONDS)
            waiting = asyncio.create_task(say(bob, "bob", "s"))
            async with asyncio.timeout(SECONDS):
                await its_turn(bob, "s")
                gate.set()
                await asyncio.gather(*flood, waiting)
            order = [each.last for each in upstream.requests]
            assert order.index("bob") <= 3, "a flood of 30 does not go first"


async def its_turn(tenant: Tenant, session_id: str) -> None:
    """Waits until a session that is being created has its turn, so that it wants a slot."""
    request = pb.GetSessionRequest(session_id=session_id)
    while True:
        try:
            await tenant.GetSession(request)
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017  # until it is there


async def test_a_refused_call_of_a_flood_is_not_received(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with serving() as upstream:
        endless_for_ann(upstream)
        flags = ["--engine", "openai", "--base-url", upstream.url, "--model", "m"]
        limits = [f"ann;max_inflight={MOST}"]
        async with tenants(daemon, tmp_path, *flags, limits=limits) as (running, ann, bob):
            async with Flood(ann, upstream).running(), asyncio.timeout(SECONDS):
                assert await status_without_request(running, ann.token) == "8"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(status_without_request(running, bob.token), 0.5)


async def status_without_request(running: RunningDaemon, token: str) -> str:
    """Calls Complete without sending its request, and returns the status that comes back."""
    path = running.socket.removeprefix("unix:")
    reader, writer = await asyncio.open_unix_connection(path)
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/ruvd.v1.SessionService/Complete",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {token}",
    }
    http.send_headers(1, list(headers.items()))
    try:
        while True:
            writer.write(http.data_to_send())
            await writer.drain()
            for event in http.receive_data(await reader.read(65536)):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found = {_text(name): _text(value) for name, value in event.headers or ()}
                    if "grpc-status" in found:
                        return found["grpc-status"]
    finally:
        writer.transport.abort()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def test_a_tenant_in_debt_of_tokens_is_refused_and_its_resume_is_not(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    limits = ["ann;tokens_per_minute=5"]
    async with tenants(daemon, tmp_path, "--engine", "echo", limits=limits) as (_, ann, bob):
        events = [each.event async for each in ann.Complete(turn("a b c d e f", "s"))]
        reason, name, seconds = quota(await refusal(ann, turn("g", "s")))
        assert (reason, name) == ("QUOTA_EXCEEDED", "tokens_per_minute")
        assert 12 < seconds <= 96  # 12 tokens, at 5 a minute
        resumed = pb.ResumeCompletionRequest(completion_id=events[0].started.completion_id)
        again = [each.event async for each in ann.ResumeCompletion(resumed)]
        assert again[-1].finished.message.content == "a b c d e f"
        await say(bob, "a b c d e f g")


async def test_batches_beyond_the_quota_are_refused_and_their_items_wait(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.01")
    limits = ["ann;max_inflight=1"]
    async with tenants(daemon, tmp_path, *flags, limits=limits) as (_, ann, _bob):
        request = pb.BatchCompleteRequest(items=[turn("a b") for _ in range(10)])
        first = ann.BatchComplete(request)
        begun = aiter(first)
        assert (await anext(begun)).result.HasField("completion")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await anext(aiter(ann.BatchComplete(request)))
        assert quota(error.value) == ("QUOTA_EXCEEDED", "max_inflight", 1.0)
        rest = [each async for each in begun]
        assert (rest[-1].summary.succeeded, rest[-1].summary.failed) == (10, 0)


async def test_without_identities_the_limits_of_default_hold(daemon: StartDaemon) -> None:
    flags = ("--engine", "echo", "--tenant-limits", "default;max_inflight=0")
    async with daemon(*flags) as running, running.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await say(stub, "hi")
        assert quota(error.value) == ("QUOTA_EXCEEDED", "max_inflight", 3600.0)
