"""What `bench/relay.py` measures: cases, and the servers that go through them in rounds."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from bench.mock_upstream import POD_FIRST_MS, POD_TOKEN_MS, POD_TOKENS
from bench.relay_clients import Client, Stream, StreamBroken
from bench.relay_servers import Failed, Server

_WARM_STREAMS = 16
_POD_SECONDS = (POD_FIRST_MS + (POD_TOKENS - 1) * POD_TOKEN_MS) / 1000


@dataclass(frozen=True, slots=True)
class Case:
    """So many streams at a time. Paced ones wait as an engine makes them wait; `pod` is paced as
    the pod's model is, and its streams begin spread out, as callers do."""

    name: str
    parallel: int
    paced: bool = False
    pod: bool = False


ALONE = Case("alone", 1, paced=True)
FAST = tuple(Case(str(parallel), parallel) for parallel in (1, 16, 32, 256))
POD = Case("pod", 64, paced=True, pod=True)
CASES = (ALONE, *FAST, POD)


@dataclass(frozen=True, slots=True)
class Run:
    """One round of a case. CPU time and memory are those of the server's processes."""

    streams: int
    seconds: float
    cpu_seconds: float
    resident_mib: float
    first_ms: Sequence[float]

    @property
    def rate(self) -> float:
        """Streams a second."""
        return self.streams / self.seconds

    @property
    def cpu_per_1000(self) -> float:
        """CPU seconds for 1,000 streams, which is also milliseconds for one."""
        return 1000 * self.cpu_seconds / self.streams

    @property
    def median_ms(self) -> float:
        """To the first token."""
        return statistics.median(self.first_ms)


@dataclass
class Target:
    """A server and how to ask it: for the pod's case by a client of its own."""

    name: str
    server: Server
    client: Client
    pod_client: Client | None = None
    runs: dict[str, dict[int, Run]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    async def warm(self) -> None:
        """Open the connections, import what is imported late."""
        await _until(self.client, FAST[1], streams=2 * _WARM_STREAMS)
        if self.pod_client:
            await self.pod_client.stream(0, paced=True)

    async def measure(self, case: Case, number: int, seconds: float) -> None:
        """A round of a case. Raises StreamBroken or Failed."""
        client = self.pod_client if case.pod and self.pod_client else self.client
        client.new_round()
        cpu = self.server.cpu_seconds()
        began = time.perf_counter()
        done = await _until(client, case, until=began + seconds)
        took = time.perf_counter() - began
        self.server.check_runs()
        run = Run(
            len(done),
            took,
            self.server.cpu_seconds() - cpu,
            self.server.memory_mib(),
            [1000 * stream.first_seconds for stream in done],
        )
        self.runs.setdefault(case.name, {})[number] = run

    async def try_to_measure(self, case: Case, number: int, seconds: float) -> None:
        """A round of a case; if it fails, the case is not measured again, and says why."""
        if case.name in self.failed:
            return
        try:
            await self.measure(case, number, seconds)
        except (StreamBroken, Failed, OSError) as failure:
            self.failed[case.name] = str(failure)[:500]
            tell(f"{self.name}, case {case.name}: {failure}")

    def all(self, case: Case) -> list[Run]:
        """The rounds of a case, the earliest first."""
        return [run for _, run in sorted(self.runs.get(case.name, {}).items())]

    def beside(self, other: Target, case: Case) -> list[tuple[Run, Run]]:
        """The rounds of a case that both have, with the other's."""
        mine, its = self.runs.get(case.name, {}), other.runs.get(case.name, {})
        return [(mine[number], its[number]) for number in sorted(mine.keys() & its.keys())]


async def _until(
    client: Client, case: Case, *, until: float = 0.0, streams: int | None = None
) -> list[Stream]:
    """So many streams at a time, until a time (each worker at least one) or for a number."""
    numbers = itertools.count() if streams is None else iter(range(streams))
    done: list[Stream] = []

    async def work(worker: int) -> None:
        if case.pod:
            await asyncio.sleep(_POD_SECONDS * worker / case.parallel)
        for _ in numbers:
            done.append(await client.stream(worker, paced=case.paced))
            if streams is None and time.perf_counter() >= until:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for worker in range(case.parallel):
                group.create_task(work(worker))
    except* (StreamBroken, OSError, grpc.aio.AioRpcError) as failures:
        broken = failures.exceptions[0]
    else:
        return done
    raise StreamBroken(f"{type(broken).__name__}: {broken}")


def tell(what: str) -> None:
    """Progress; standard output is for the figures."""
    print(f"... {what}", file=sys.stderr, flush=True)
