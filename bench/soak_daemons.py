"""The daemons of `bench/soak.py`, their samples, and the criteria for constant figures."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from bench import relay_servers as servers
from bench.soak_load import Load

TOKENS, _FIRST_MS, _TOKEN_MS = 32, 20.0, 2.0
_GAUGES = re.compile(rb"^ruvd_(completions_active|tasks)(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
# By how much the last quarter may exceed the second quarter: a share of it plus a constant.
_ALLOWED = {
    "resident_mib": (0.05, 4.0),
    "open_files": (0.05, 8.0),
    "threads": (0.0, 2.0),
    "under_way": (0.0, 6.0),
    "tasks": (0.05, 24.0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of a daemon at a time.

    `children_mib` is the memory of its engine. `under_way` (running completions) and `tasks` are
    None if its metrics could not be read.
    """

    at: float
    resident_mib: float
    children_mib: float
    open_files: int
    threads: int
    under_way: float | None
    tasks: float | None


class MonitoredDaemon:
    """A daemon under load, with samples of its state."""

    def __init__(self, load: Load, callers: int, server: servers.Server, metrics_port: int) -> None:
        self.load = load
        self.callers = callers
        self.server = server
        self.samples: list[Sample] = []
        self.tasks_before: float | None = None
        self._metrics_port = metrics_port

    async def sample(self, at: float) -> None:
        """Takes one sample."""
        self.server.check_runs()
        process = psutil.Process(self.server.process.pid)
        children = 0
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                children += child.memory_info().rss
        gauges = await self.read_gauges()
        with process.oneshot():
            self.samples.append(
                Sample(
                    round(at, 1),
                    round(process.memory_info().rss / (1 << 20), 2),
                    round(children / (1 << 20), 1),
                    process.num_fds(),
                    process.num_threads(),
                    gauges.get("completions_active"),
                    gauges.get("tasks"),
                )
            )

    async def read_gauges(self) -> dict[str, float]:
        """Returns the running completions and tasks, or nothing if there is no answer in 1 s."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._metrics_port)
                writer.write(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                answer = await reader.read(-1)
                writer.close()
            return {name.decode(): float(value) for name, value in _GAUGES.findall(answer)}
        return {}

    def judge(self) -> list[dict[str, Any]]:
        """Returns the medians of the second and the last quarter, with limits and verdicts."""
        judged = []
        for name, (share, constant) in _ALLOWED.items():
            values = [getattr(sample, name) for sample in self.samples]
            known = [value for value in values if value is not None]
            if len(known) < 4:  # each quarter needs at least one
                judged.append({"what": name, "part": self.load.name, "verdict": "not measured"})
                continue
            quarter = len(known) // 4
            early = statistics.median(known[quarter : 2 * quarter])
            late = statistics.median(known[-quarter:])
            limit = early * (1 + share) + constant
            verdict = "met" if late <= limit else "not met"
            judged.append(
                {
                    "what": name,
                    "part": self.load.name,
                    "second_quarter": early,
                    "last_quarter": late,
                    "limit": round(limit, 2),
                    "verdict": verdict,
                }
            )
        return judged


class Upstream:
    """The mock upstream, which can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self._folder = folder
        self._stack = AsyncExitStack()
        self._server: servers.Server | None = None

    async def start(self) -> None:
        mock = servers.mock(
            self._folder, tokens=TOKENS, first_ms=_FIRST_MS, token_ms=_TOKEN_MS, port=self.port
        )
        self._server, self.port = await self._stack.enter_async_context(mock)

    async def kill(self) -> None:
        assert self._server is not None
        self._server.process.kill()
        await self._server.process.wait()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
