"""The number of sessions in a running daemon: expired ones are swept, and metrics add up."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families
from running import RunningDaemon, StartDaemon
from wire import say, turn

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo", "--metrics-listen", "127.0.0.1:0")
WAIT_SECONDS = 20.0

Figures: TypeAlias = dict[tuple[str, ...], float]


async def scrape(running: RunningDaemon) -> Figures:
    """Returns the samples of the daemon's Prometheus endpoint, by name and label values."""
    address = (await running.logged("serving metrics"))["address"]

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            text: str = response.read().decode()
            return text

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def counts(stub: Any) -> tuple[int, int]:
    """Returns the numbers of sessions in the store, and of those that have not expired."""
    metrics = (await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())).metrics
    return metrics.total_sessions, metrics.active_sessions


def idle_after(seconds: float, session_id: str) -> pb.CreateSessionRequest:
    return pb.CreateSessionRequest(
        session_id=session_id, idle_timeout=Duration(nanos=round(seconds * 1e9))
    )


async def test_an_expired_session_is_deleted_within_the_sweep_interval(
    daemon: StartDaemon,
) -> None:
    interval, idle = 0.4, 0.2
    sweep = ("--sweep-interval-seconds", str(interval))
    async with daemon(*ECHO, *sweep) as running, running.stub() as stub:
        await stub.CreateSession(pb.CreateSessionRequest(session_id="lasting"))
        for number in range(3):  # the loop goes on after its first round
            created = time.monotonic()
            await stub.CreateSession(idle_after(idle, f"s{number}"))

            async def only_the_lasting_one() -> bool:
                return await counts(stub) == (1, 1)

            await eventually(only_the_lasting_one)
            # The rest is for a busy machine; the default interval is 300 s.
            assert idle <= time.monotonic() - created < idle + interval + 5
        assert (await scrape(running))["ruvd_sessions_ended_total", "idle"] == 3


async def test_an_expired_session_stays_in_the_store_until_it_is_swept(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO, "--sweep-interval-seconds", "3600") as running, running.stub() as stub:
        await stub.CreateSession(idle_after(0.1, "s"))

        async def expired() -> bool:
            return await counts(stub) == (1, 0)

        await eventually(expired)


async def test_the_sweep_goes_on_after_the_store_was_down(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = ("--store", f"sqlite:{path}")
    # It does not sweep, however long its stop takes.
    async with daemon(*ECHO, *store) as first, first.stub() as stub:
        await stub.CreateSession(idle_after(0.5, "s"))
    good = path.read_bytes()
    path.write_bytes(b"this is no database, and it is long enough to be read as one" * 100)
    sweeps = ("--sweep-interval-seconds", "0.1")
    async with daemon(*ECHO, *store, *sweeps) as second, second.stub() as stub:

        async def failed_twice() -> bool:
            return (await scrape(second))["ruvd_store_errors_total", "expire"] >= 2

        await eventually(failed_twice)
        # Renamed into place, as a file that is being written is an empty database at first.
        whole = tmp_path / "good.db"
        whole.write_bytes(good)
        whole.rename(path)

        async def swept() -> bool:
            return (await scrape(second))["ruvd_sessions_ended_total", "idle"] == 1

        await eventually(swept)
        assert await counts(stub) == (0, 0)


async def test_sessions_created_minus_ended_are_those_active(daemon: StartDaemon) -> None:
    flags = ("--max-sessions", "5", "--sweep-interval-seconds", "0.1", "--echo-faults")
    async with daemon(*ECHO, *flags) as running, running.stub() as stub:

        async def sums() -> tuple[float, dict[str, float], float]:
            figures = await scrape(running)
            ended = {
                reason: figures["ruvd_sessions_ended_total", reason]
                for reason in ("idle", "capacity", "client")
            }
            created = figures[("ruvd_sessions_created_total",)]
            assert created - sum(ended.values()) == figures[("ruvd_sessions_active",)]
            return created, ended, figures[("ruvd_sessions_active",)]

        assert await sums() == (0, {"idle": 0, "capacity": 0, "client": 0}, 0)
        await stub.CreateSession(pb.CreateSessionRequest(session_id="created"))
        await asyncio.gather(*(say(stub, "hi", "completed") for _ in range(3)))
        await stub.ForkSession(
            pb.ForkSessionRequest(session_id="completed", new_session_id="forked")
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await say(stub, "!fault ENGINE_REJECTED no", "never committed")
        assert await sums() == (3, {"idle": 0, "capacity": 0, "client": 0}, 3)

        cut = stub.Complete(turn("word " * 50_000, "cut"))
        await anext(aiter(cut))
        cut.cancel()
        await running.logged("completion failed", reason="COMPLETION_CANCELLED")
        await stub.EndSession(pb.EndSessionRequest(session_id="created"))
        await stub.EndSession(pb.EndSessionRequest(session_id="created", allow_missing=True))
        assert await sums() == (3, {"idle": 0, "capacity": 0, "client": 1}, 2)

        # More than fit: each displaces the least recently used. Three at once, as five in use at
        # once would leave none to displace.
        for first in range(0, 9, 3):
            await asyncio.gather(*(say(stub, "hi", f"many-{first + n}") for n in range(3)))
        created, ended, active = await sums()
        assert (created, active, ended["capacity"]) == (12, 5, 6)

        await stub.CreateSession(idle_after(0.2, "short"))

        async def swept() -> bool:
            return (await scrape(running))["ruvd_sessions_ended_total", "idle"] == 1

        await eventually(swept)
        assert await sums() == (13, {"idle": 1, "capacity": 7, "client": 1}, 4)
