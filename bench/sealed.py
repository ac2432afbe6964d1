"""A benchmark of encryption: the same turns in an encrypted and in a plain store.

Both stores have a hundred sessions of twelve exchanges and are used through SqliteStore, in this
process, as by the daemon. The work is done in both alternately, so that other load on the machine
affects both alike:

commit     the commit of a user's message and its answer with an idempotency record (durability
           normal), one at a time: its latency
large      the same with an answer of 64 KiB
window     the exchanges of a context window from the file
turns      all of that in 32 sessions at once: turns a second

Run it with `.venv/bin/python -m bench.sealed`; it takes about a minute. Each repeat prints medians
of both stores and their ratio. The last lines are the median ratios and their spread over repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from bench.machine import describe
from ruvd.core.model import (
    Finished,
    FinishReason,
    IdempotencyRecord,
    Message,
    Role,
    Session,
    Timings,
    Usage,
)
from ruvd.core.ports.store import Commit
from ruvd.core.sessions import window
from ruvd.core.sessions.model import with_messages
from ruvd.sealing.keys import KeyRing, OperatorKeys
from ruvd.server.system_clock import SystemClock
from ruvd.stores.sqlite.sealed_rows import SealedRows
from ruvd.stores.sqlite.store import SqliteStore

_SESSIONS = 100
_EXCHANGES = 12
_WINDOW = 10
_SYSTEM_PROMPT = "You keep the harbour's ledger. Answer in one sentence. " * 20
_LARGE_BYTES = 64 << 10
_AT_ONCE = 32
_PARTS = 20
_numbers = count()


def exchange(answer_bytes: int = 300) -> Sequence[Message]:
    number = next(_numbers)
    return (
        Message(Role.USER, f"question {number} " + "q" * 100),
        Message(Role.ASSISTANT, f"answer {number} " + "a" * answer_bytes),
    )


class Sample:
    """A store and its sessions."""

    def __init__(self, path: Path, *, sealed: bool) -> None:
        keys = OperatorKeys(KeyRing({"bench": b"k" * 32}))
        self._store = SqliteStore(
            path,
            clock=SystemClock(""),
            observer=lambda _: None,
            sealing=SealedRows(keys) if sealed else None,
        )
        self._sessions: list[Session] = []

    async def build(self) -> None:
        """Fills the store."""
        await self._store.open()
        for number in range(_SESSIONS):
            session = Session(f"s{number}", 0.0, 0.0, 1e9, _SYSTEM_PROMPT, labels={"team": "bern"})
            await self._store.commit(Commit(session, create=True))
            self._sessions.append(session)
            for _ in range(_EXCHANGES):
                await self.commit(number)

    async def commit(self, which: int = 0, answer_bytes: int = 300) -> None:
        session = self._sessions[which]
        numbered = window.number(session.exchange_count, exchange(answer_bytes))
        after = with_messages(session, numbered)
        usage, timings = Usage(100, 90, 10), Timings(0.0, 0.1, 0.2, None)
        answer = numbered[-1][1]
        finished = Finished(FinishReason.STOP, answer, usage, timings, after.exchange_count)
        number = next(_numbers)
        record = IdempotencyRecord(f"r{number}", b"d" * 32, f"cmpl-{number}", 5, finished)
        await self._store.commit(Commit(after, numbered, record))
        self._sessions[which] = after

    async def large(self) -> None:
        await self.commit(1, _LARGE_BYTES)

    async def window(self, which: int = 2) -> None:
        start = max(0, self._sessions[which].exchange_count - _WINDOW)
        found = await self._store.exchanges(f"s{which}", start)
        assert len(found) == _WINDOW

    async def turns(self, turns: int) -> float:
        """Runs turns in many sessions at once; returns how many a second."""
        numbers = iter(range(turns))

        async def talk(which: int) -> None:
            for _ in numbers:
                await self.window(which)
                await self.commit(which)

        began = time.perf_counter()
        await asyncio.gather(*(talk(10 + number) for number in range(_AT_ONCE)))
        return turns / (time.perf_counter() - began)

    async def close(self) -> None:
        await self._store.close()


async def seconds(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def latency(name: str, plain: Sample, sealed: Sample, rounds: int) -> float:
    """Times the same work in both alternately, prints the medians and returns their ratio."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for found, sample in zip(times, (plain, sealed), strict=True):
            found.append(await seconds(getattr(sample, name)))
    p50 = [statistics.median(found) * 1e6 for found in times]
    p95 = [statistics.quantiles(found, n=20)[-1] * 1e6 for found in times]
    ratio = p50[1] / p50[0]
    print(
        f"  {name:6} p50 {p50[0]:6.0f} us plain, {p50[1]:6.0f} us encrypted, ratio {ratio:.2f}"
        f"   (p95 {p95[0]:.0f}, {p95[1]:.0f} us)"
    )
    return ratio


async def rate(plain: Sample, sealed: Sample, turns: int) -> float:
    """Runs the same turns in both alternately, prints the rates and returns their ratio."""
    found: list[list[float]] = [[], []]
    for number in range(_PARTS):
        for which in (0, 1) if number % 2 else (1, 0):
            found[which].append(await (plain, sealed)[which].turns(turns // _PARTS))
    rates = [statistics.median(each) for each in found]
    ratio = rates[1] / rates[0]
    print(f"  turns  {rates[0]:6.0f} a second plain, {rates[1]:6.0f} encrypted, ratio {ratio:.2f}")
    return ratio


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Takes all figures, which are also printed at once, and returns them."""
    plain, sealed = (
        Sample(folder / f"{name}.db", sealed=name == "sealed") for name in ("plain", "sealed")
    )
    await plain.build()
    await sealed.build()
    ratios: dict[str, list[float]] = {"commit": [], "large": [], "window": [], "turns": []}
    for repeat in range(options.repeats):
        print(f"repeat {repeat + 1}")
        for name in ("commit", "large", "window"):
            rounds = options.rounds // (4 if name == "large" else 1)
            ratios[name].append(await latency(name, plain, sealed, rounds))
        ratios["turns"].append(await rate(plain, sealed, options.turns))
    await plain.close()
    await sealed.close()
    sizes = [(folder / f"{name}.db").stat().st_size for name in ("plain", "sealed")]
    for name, values in ratios.items():
        print(
            f"{name}: ratio encrypted/plain median {statistics.median(values):.2f}"
            f" (spread {min(values):.2f} to {max(values):.2f} over {len(values)})"
        )
    print(f"size of the file: {sizes[0]:,} bytes plain, {sizes[1]:,} encrypted")
    return {"ratios": ratios, "plain_bytes": sizes[0], "sealed_bytes": sizes[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of everything")
    parser.add_argument("--rounds", type=int, default=1_000, help="commits of a repeat")
    parser.add_argument("--turns", type=int, default=5_000, help="turns at once of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.turns, options.repeats = 200, 1_000, 2
    machine = describe()
    print(machine)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = asyncio.run(measure(options, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
