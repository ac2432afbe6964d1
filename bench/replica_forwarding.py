"""Measures how much later the first token of a forwarded call comes.

Two daemons share a PostgreSQL database and call each other over mutual TLS. A turn runs at the
first one, slowly. The same request is then sent again, in turn to the first daemon and to the
other one, which finds out in the database where the turn runs and forwards the call. Both answer
with the events of the running turn from its beginning, so that the first token is there already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from bench import postgres_server, runner
from bench import relay_servers as servers
from bench.identity import certificates
from bench.report import Criterion, spread
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_AIM_MS = 3.0
_TOKENS = 100
_TOKEN_MS = 20
_PAIRS = 10
_WARM_PAIRS = 10


async def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Returns the times to the first token in ms, of each round's pairs of calls."""
    place = folder / "forwarding"
    await asyncio.to_thread(place.mkdir)
    files = await asyncio.to_thread(certificates, place)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres_server.database())
        _, mock = await stack.enter_async_context(
            servers.mock(place, tokens=_TOKENS, first_ms=_TOKEN_MS, token_ms=_TOKEN_MS)
        )
        store, stubs = database.new("forwarding"), []
        for name in ("owner", "forwarder"):
            peers = (
                "--peer-listen", f"127.0.0.1:{servers.free_port()}",
                "--peer-tls-ca-file", str(files["ca"][0]),
                "--peer-tls-cert-file", str(files["server"][0]),
                "--peer-tls-key-file", str(files["server"][1]),
                "--log-level", "error",
            )  # fmt: skip
            server, address = await stack.enter_async_context(
                servers.ruvd(name, place, mock, store=store, flags=peers)
            )
            await servers.until_serving(server, address, service="readiness")
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stubs.append(pb_grpc.SessionServiceStub(channel))
        await _pairs(stubs, "warm", _WARM_PAIRS)
        direct: list[float] = []
        forwarded: list[float] = []
        for number in range(rounds):
            for own, other in await _pairs(stubs, f"s{number}", _PAIRS):
                direct.append(own)
                forwarded.append(other)
            runner.log_progress(f"forwarded round {number + 1} of {rounds}")
    return {"postgres": database.version, "direct_ms": direct, "forwarded_ms": forwarded}


async def _pairs(stubs: Sequence[Any], session: str, count: int) -> list[tuple[float, float]]:
    request = pb.CompleteRequest(
        session_id=session,
        request_id=f"r-{session}",
        messages=[pb.Message(role=pb.ROLE_USER, content="Tell me what a sidecar is.")],
        options=pb.CompletionOptions(model="gpt-4o"),  # the mock's slow one
    )
    running = stubs[0].Complete(request)
    await _until_token(running)
    pairs = []
    for number in range(count):
        found = [0.0, 0.0]
        for at in (0, 1) if number % 2 == 0 else (1, 0):
            began = time.perf_counter()
            call = stubs[at].Complete(request)
            await _until_token(call)
            found[at] = 1000 * (time.perf_counter() - began)
            call.cancel()
        pairs.append((found[0], found[1]))
    async for _ in running:
        pass
    return pairs


async def _until_token(call: Any) -> None:
    async for response in call:
        if response.event.HasField("delta"):
            return
    raise servers.Failed("the turn ended without a token")


def criterion(figures: dict[str, Any]) -> Criterion:
    """Returns the aim and what was measured of it."""
    later = spread(_later(figures))["median"]
    return Criterion("ms that the first token of a forwarded call comes later", later, _AIM_MS)


def _later(figures: dict[str, Any]) -> Sequence[float]:
    pairs = zip(figures["direct_ms"], figures["forwarded_ms"], strict=True)
    return [forwarded - direct for direct, forwarded in pairs]


def show(figures: dict[str, Any]) -> None:
    """Prints the figures of forwarded calls as a Markdown table."""
    print("\n| first token | median, ms | least | most |\n|---|---|---|---|")
    for name, values in (
        ("at the daemon of the turn", figures["direct_ms"]),
        ("forwarded by another one", figures["forwarded_ms"]),
        ("later by, of each pair", _later(figures)),
    ):
        each = spread(values, 2)
        print(f"| {name} | {each['median']:g} | {each['min']:g} | {each['max']:g} |")
    print(f"\n{criterion(figures)}")
