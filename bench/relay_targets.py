"""The cases of `bench/relay.py`, and the servers that run through them in rounds."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from bench.mock_upstream import POD_FIRST_MS, POD_TOKEN_MS, POD_TOKENS
from bench.relay_clients import Client, Stream, StreamBroken
from bench.relay_servers import Failed, Server
from bench.runner import log_progress

_WARM_STREAMS = 16
_POD_SECONDS = (POD_FIRST_MS + (POD_TOKENS - 1) * POD_TOKEN_MS) / 1000


@dataclass(frozen=True, slots=True)
class Case:
    """A number of parallel streams.

    For a paced case the mock waits before each token, as an engine does. The `pod` case uses the
    pace of the pod's model, and its streams start spread over time, as those of real callers do.
    gRPC's streams share a connection, unless they are those of `clients` with one each. HTTP's
    always have one each.
    """

    name: str
    parallel: int
    paced: bool = False
    pod: bool = False
    clients: bool = False


ALONE = Case("alone", 1, paced=True)
FAST = tuple(Case(str(parallel), parallel) for parallel in (1, 16, 32, 64, 256))
CLIENTS = tuple(Case(f"{count}-clients", count, clients=True) for count in (16, 64, 256))
POD = Case("pod", 64, paced=True, pod=True)
CASES = (ALONE, *FAST, *CLIENTS, POD)


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one case in one round; CPU time and memory are the server processes'."""

    streams: int
    seconds: float
    cpu_seconds: float
    resident_mib: float
    first_ms: Sequence[float]

    @property
    def rate(self) -> float:
        """Streams per second."""
        return self.streams / self.seconds

    @property
    def cpu_per_1000(self) -> float:
        """CPU seconds per 1,000 streams, which equals CPU milliseconds per stream."""
        return 1000 * self.cpu_seconds / self.streams

    @property
    def median_ms(self) -> float:
        """The median time to the first token."""
        return statistics.median(self.first_ms)


@dataclass
class Target:
    """A server with its clients and results; the pod case has a client of its own."""

    name: str
    server: Server
    client: Client
    pod_client: Client | None = None
    runs: dict[str, dict[int, Run]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    async def warm(self) -> None:
        """Runs a few streams, so that connections are open and late imports are done."""
        await _run_streams(self.client, FAST[1], streams=2 * _WARM_STREAMS)
        if self.pod_client:
            await self.pod_client.stream(0, paced=True)

    async def measure(self, case: Case, number: int, seconds: float) -> None:
        """Measures one case in one round. Raises StreamBroken or Failed."""
        client = self.pod_client if case.pod and self.pod_client else self.client
        client.new_round()
        client.use_connections(one_each=case.clients)
        if case.clients:  # so that its connections are open
            await _run_streams(client, case, streams=2 * case.parallel)
        cpu = self.server.cpu_seconds()
        began = time.perf_counter()
        done = await _run_streams(client, case, until=began + seconds)
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
        """Measures one case in one round; after a failure the case is not measured again."""
        if case.name in self.failed:
            return
        try:
            await self.measure(case, number, seconds)
        except (StreamBroken, Failed, OSError) as failure:
            self.failed[case.name] = str(failure)[:500]
            log_progress(f"{self.name}, case {case.name}: {failure}")

    def all(self, case: Case) -> list[Run]:
        """Returns the runs of a case in the order of the rounds."""
        return [run for _, run in sorted(self.runs.get(case.name, {}).items())]

    def beside(self, other: Target, case: Case) -> list[tuple[Run, Run]]:
        """Returns the runs of both targets in the rounds of the case that both completed."""
        own, others = self.runs.get(case.name, {}), other.runs.get(case.name, {})
        return [(own[number], others[number]) for number in sorted(own.keys() & others.keys())]


async def _run_streams(
    client: Client, case: Case, *, until: float = 0.0, streams: int | None = None
) -> list[Stream]:
    """Runs streams in parallel, until a time (at least one per worker) or up to a number."""
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
