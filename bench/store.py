"""A benchmark of the store's size: the same work in a large and in a small store.

The large store has 100,000 sessions of one exchange and one session of 10,000 exchanges. The small
one has 10 sessions and one of 10 exchanges, which is replaced when it has 30. Both are used through
SessionRegistry and SqliteStore. Two operations are timed in both stores alternately, so that other
load on the machine affects both alike:

get        `Store.get` of a random session
turn       the store's part of a turn: get, the exchanges of the context window, and the commit of a
           user's message and its answer with an idempotency record (durability normal). It is done
           in the long session, where a cost that grows with the length would show

The process runs on one core. On two, waking a thread on the other core takes 90 us longer, and the
affected store stays the same for minutes (two equal stores took 40 and 130 us).

Run it with `.venv/bin/python bench/store.py`; it takes about a minute.
Each repeat prints the two medians and their ratio. The last lines are the median ratios and their
spread over the repeats. The aim is that no ratio is above 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from bench.machine import describe
from ruvd.core.model import Finished, FinishReason, IdempotencyRecord, Message, Role, Timings, Usage
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Commit
from ruvd.core.sessions import window
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import NewSession, SessionPolicy, with_messages
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.turn_queue import TurnRequest
from ruvd.server.system_clock import SystemClock
from ruvd.stores.sqlite.store import SqliteStore

_MEBIBYTE = 1 << 20
_AT_ONCE = 256
_WINDOW = 10
_numbers = count()


@dataclass
class Sample:
    """A store with `sessions` sessions, and another session with `exchanges` exchanges."""

    path: Path
    sessions: int
    exchanges: int

    def __post_init__(self) -> None:
        clock = SystemClock("")
        self.store = SqliteStore(self.path, clock=clock, observer=ignore)
        self.long = ""
        policy = SessionPolicy(max_sessions=10 * self.sessions + 10_000, idle_timeout_seconds=1e9)
        self.registry = SessionRegistry(self.store, clock, ignore, policy)
        self.commands = SessionCommands(self.registry, self.store, clock, ignore, policy)

    async def build(self) -> float:
        """Fills the store and returns the seconds that it took."""
        began = time.perf_counter()
        await self.store.open()
        ids = iter(range(self.sessions))

        async def create() -> None:
            for number in ids:
                messages = exchange(number)
                await self.commands.create(NewSession(f"s{number}", messages=messages))

        # Many are created at once, so that they share transactions.
        await asyncio.gather(*(create() for _ in range(_AT_ONCE)))
        await self.begin_long()
        return time.perf_counter() - began

    async def begin_long(self) -> None:
        """Creates the long session, which `turn` continues."""
        messages = [message for number in range(self.exchanges) for message in exchange(number)]
        self.long = f"long-{next(_numbers)}"
        await self.commands.create(NewSession(self.long, messages=messages))

    async def keep_size(self) -> None:
        """Replaces the long session when turns have made it three times as long."""
        session = await self.store.get(self.long)
        if session and session.exchange_count > 3 * self.exchanges:
            await self.begin_long()

    async def get(self) -> None:
        found = await self.store.get(f"s{random.randrange(self.sessions)}")
        assert found is not None

    async def turn(self) -> None:
        """Does the store's part of one turn with a request id."""
        session = await self.store.get(self.long)
        assert session is not None
        start = max(0, session.exchange_count - _WINDOW)
        history = await self.store.exchanges(self.long, start)
        assert len(history) == min(_WINDOW, session.exchange_count)
        number = next(_numbers)
        numbered = window.number(session.exchange_count, exchange(number))
        after = with_messages(session, numbered)
        usage, timings = Usage(100, 90, 10), Timings(0.0, 0.1, 0.2, None)
        finished = Finished(
            FinishReason.STOP, numbered[-1][1], usage, timings, after.exchange_count
        )
        idempotency_record = IdempotencyRecord(
            f"r{number}", b"d" * 32, f"cmpl-{number}", 5, finished
        )
        async with self.registry.turn_queue.turn(self.long, TurnRequest()):
            await self.registry.commit(Commit(after, numbered, idempotency_record))

    async def close(self) -> None:
        await self.store.close()


def ignore(event: Event) -> None:
    """Ignores the event."""


def exchange(number: int) -> Sequence[Message]:
    return (
        Message(Role.USER, f"question {number} " + "q" * 100),
        Message(Role.ASSISTANT, f"answer {number} " + "a" * 200),
    )


async def seconds(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def compare(name: str, small: Sample, large: Sample, rounds: int) -> float:
    """Times the same work in both alternately, prints the medians and returns their ratio."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for which, sample in enumerate((small, large)):
            await sample.keep_size()
            times[which].append(await seconds(getattr(sample, name)))
    p50 = [statistics.median(times[which]) * 1e6 for which in (0, 1)]
    p95 = [statistics.quantiles(times[which], n=20)[-1] * 1e6 for which in (0, 1)]
    ratio = p50[1] / p50[0]
    print(
        f"  {name:5} p50 {p50[0]:6.0f} us small, {p50[1]:6.0f} us large, ratio {ratio:.2f}"
        f"   (p95 {p95[0]:.0f}, {p95[1]:.0f} us)"
    )
    return ratio


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Takes all figures, which are also printed at once, and returns them."""
    small = Sample(folder / "small.db", 10, 10)
    large = Sample(folder / "large.db", options.sessions, options.exchanges)
    await small.build()
    took = await large.build()
    print(
        f"built {options.sessions} sessions and one of {options.exchanges} exchanges in"
        f" {took:.1f} s ({options.sessions / took:.0f} sessions/s)"
    )
    ratios: dict[str, list[float]] = {"get": [], "turn": []}
    for name in ratios:  # warm both
        await compare(name, small, large, 100)
    for repeat in range(options.repeats):
        print(f"repeat {repeat + 1}")
        for name, rounds in (("get", options.gets), ("turn", options.turns)):
            ratios[name].append(await compare(name, small, large, rounds))
    rss = psutil.Process().memory_info().rss / _MEBIBYTE
    await small.close()
    await large.close()
    size = (folder / "large.db").stat().st_size / _MEBIBYTE
    for name, values in ratios.items():
        print(
            f"{name}: ratio large/small median {statistics.median(values):.2f}"
            f" (spread {min(values):.2f} to {max(values):.2f} over {len(values)})"
        )
    print(f"large file {size:.1f} MiB; this process {rss:.0f} MiB resident")
    return {
        "sessions": options.sessions,
        "exchanges": options.exchanges,
        "ratios": ratios,
        "file_mib": size,
        "resident_mib": rss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--exchanges", type=int, default=10_000)
    parser.add_argument("--gets", type=int, default=2_000, help="a repeat")
    parser.add_argument("--turns", type=int, default=500, help="a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.exchanges, options.repeats = 10_000, 1_000, 2
        options.gets, options.turns = 500, 200
    machine = describe()
    print(machine)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = asyncio.run(measure(options, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
