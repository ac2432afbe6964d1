"""The daemons of `bench/soak.py`, what is seen of them, and when that is level."""

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
_TOLD = re.compile(rb"^ruvd_(completions_active|tasks)(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
# What the last quarter may have above the second: a share of it, and so much.
_ALLOWED = {
    "resident_mib": (0.05, 4.0),
    "open_files": (0.05, 8.0),
    "threads": (0.0, 2.0),
    "under_way": (0.0, 6.0),
    "tasks": (0.05, 24.0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A daemon at a time. `children_mib` is its engine's; `under_way` and `tasks` None if it does
    not say."""

    at: float
    resident_mib: float
    children_mib: float
    open_files: int
    threads: int
    under_way: float | None
    tasks: float | None


class Part:
    """A daemon under load."""

    def __init__(self, load: Load, callers: int, server: servers.Server, metrics: int) -> None:
        self.load = load
        self.callers = callers
        self.server = server
        self.samples: list[Sample] = []
        self.tasks_before: float | None = None
        self._metrics_port = metrics

    async def sample(self, at: float) -> None:
        """Look at it once."""
        self.server.check_runs()
        process = psutil.Process(self.server.process.pid)
        children = 0
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                children += child.memory_info().rss
        told = await self.told()
        with process.oneshot():
            self.samples.append(
                Sample(
                    round(at, 1),
                    round(process.memory_info().rss / (1 << 20), 2),
                    round(children / (1 << 20), 1),
                    process.num_fds(),
                    process.num_threads(),
                    told.get("completions_active"),
                    told.get("tasks"),
                )
            )

    async def told(self) -> dict[str, float]:
        """Completions under way and tasks, by the daemon's own count; nothing if it does not
        answer within a second."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._metrics_port)
                writer.write(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                answer = await reader.read(-1)
                writer.close()
            return {name.decode(): float(value) for name, value in _TOLD.findall(answer)}
        return {}

    def judge(self) -> list[dict[str, Any]]:
        """The medians of the second and of the last quarter, and whether they are level."""
        judged = []
        for name, (share, more) in _ALLOWED.items():
            values = [getattr(sample, name) for sample in self.samples]
            known = [value for value in values if value is not None]
            if len(known) < 4:  # a quarter has to have one
                judged.append({"what": name, "part": self.load.name, "verdict": "not measured"})
                continue
            quarter = len(known) // 4
            early = statistics.median(known[quarter : 2 * quarter])
            late = statistics.median(known[-quarter:])
            most = early * (1 + share) + more
            verdict = "met" if late <= most else "not met"
            judged.append(
                {
                    "what": name,
                    "part": self.load.name,
                    "second_quarter": early,
                    "last_quarter": late,
                    "most": round(most, 2),
                    "verdict": verdict,
                }
            )
        return judged


class Upstream:
    """The mock, which is killed and started again on the same port."""

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
