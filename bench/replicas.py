"""Measures what sessions in PostgreSQL cost, beside SQLite, and beside a gateway that has both too.

Each server keeps the history of its conversations and has the mock upstream, which answers with 32
tokens and never waits. So a turn's time is the servers' own. The PostgreSQL server is one for all,
with the defaults of a fresh installation: commits are synchronous and reach the disk. Everything
shares the cores. A round takes each server in turn, every second round in reverse order, and
differences are of the same round.

ruvd-sqlite     ruvd's default
ruvd-postgres   ruvd with a database that several daemons may share
smg-memory      the Shepherd Model Gateway with its default, a history in memory (Responses API)
smg-postgres    the same with its history in PostgreSQL

The aims: one turn at a time takes at most 5 ms longer than on SQLite, and the first token of a call
that another daemon forwards comes at most 3 ms later (`bench/replica_forwarding.py`).

Then it measures what a move of a session to another daemon costs with the embedded engine, where
the prompt is evaluated anew (`bench/replica_moves.py`). `--only` takes some of the parts.

Run it with `.venv/bin/python -m bench.replicas`; it takes about four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import (
    environments,
    postgres_server,
    relay_gateways,
    replica_forwarding,
    replica_moves,
    runner,
)
from bench import relay_servers as servers
from bench.relay_clients import Client, GrpcClient, ResponsesClient, Stream, closing
from bench.relay_servers import Server
from bench.report import Criterion, spread

_TOKENS = 32
_AIM_MS = 5.0
_CASES = (1, 16)
_WARM_TURNS = 30
PARTS = ("turns", "forwarded", "moves")


@dataclass
class Target:
    """A server with its client, and the figures of each round by the number of turns at once."""

    name: str
    server: Server
    client: Client
    total_ms: dict[int, list[float]] = field(default_factory=dict)
    first_ms: dict[int, list[float]] = field(default_factory=dict)
    rate: dict[int, list[float]] = field(default_factory=dict)
    cpu_ms: dict[int, list[float]] = field(default_factory=dict)

    async def turns(self, parallel: int, seconds: float) -> list[Stream]:
        """Runs turns for so long, each worker in a conversation of its own."""
        done: list[Stream] = []
        until = time.perf_counter() + seconds

        async def work(worker: int) -> None:
            while time.perf_counter() < until:
                done.append(await self.client.stream(worker, paced=False))

        await asyncio.gather(*(work(worker) for worker in range(parallel)))
        return done

    async def warm(self) -> None:
        """Opens the connections, and makes late imports and prepared statements happen."""
        for _ in range(_WARM_TURNS):
            await self.client.stream(0, paced=False)
        await self.turns(max(_CASES), 0.5)

    async def measure(self, parallel: int, seconds: float) -> None:
        """Adds the figures of one round."""
        self.client.new_round()
        cpu, began = self.server.cpu_seconds(), time.perf_counter()
        done = await self.turns(parallel, seconds)
        took = time.perf_counter() - began
        self.server.check_runs()
        cpu = self.server.cpu_seconds() - cpu
        for figures, value in (
            (self.total_ms, 1000 * statistics.median(each.total_seconds for each in done)),
            (self.first_ms, 1000 * statistics.median(each.first_seconds for each in done)),
            (self.rate, len(done) / took),
            (self.cpu_ms, 1000 * cpu / len(done)),
        ):
            figures.setdefault(parallel, []).append(value)


async def targets(
    stack: AsyncExitStack, folder: Path, database: postgres_server.Database, smg: Path | None
) -> list[Target]:
    """Starts all servers and returns them."""
    _, mock = await stack.enter_async_context(
        servers.mock(folder, tokens=_TOKENS, first_ms=0, token_ms=0)
    )
    quiet = ("--log-level", "error")
    found: list[Target] = []
    stores = {
        "ruvd-sqlite": f"sqlite:{folder}/ruvd.db",
        "ruvd-postgres": database.new("ruvd"),
    }
    for name, store in stores.items():
        server, address = await stack.enter_async_context(
            servers.ruvd(name, folder, mock, store=store, flags=quiet)
        )
        await servers.until_serving(server, address, service="readiness")
        own: Client = GrpcClient(address, _TOKENS, sessions=True)
        found.append(Target(name, server, await stack.enter_async_context(closing(own))))
    if smg:
        for name, url in (("smg-memory", ""), ("smg-postgres", database.new("smg"))):
            gateway = relay_gateways.smg(folder, smg, mock, url)
            server, port = await stack.enter_async_context(gateway)
            client = await stack.enter_async_context(closing(ResponsesClient(port, _TOKENS)))
            found.append(Target(name, server, client))
    return found


async def measure_turns(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures turns of all servers and returns the figures."""
    smg: Path | None = environments.DEFAULT / "smg"
    try:
        await environments.install("smg", environments.DEFAULT / "smg")
    except environments.NotInstalled as error:
        runner.log_progress(f"without smg: {error}")
        smg = None
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres_server.database())
        measured = await targets(stack, folder, database, smg)
        for target in measured:
            await target.warm()
        for number in range(options.rounds):
            for target in measured if number % 2 == 0 else measured[::-1]:
                for parallel in _CASES:
                    await target.measure(parallel, options.seconds)
            runner.log_progress(f"round {number + 1} of {options.rounds}")
    return {
        "postgres": database.version,
        "smg": environments.version("smg", "smg") if smg else "",
        "targets": {
            each.name: {
                "total_ms": each.total_ms,
                "first_ms": each.first_ms,
                "rate": each.rate,
                "cpu_ms": each.cpu_ms,
            }
            for each in measured
        },
    }


def more_ms(figures: dict[str, Any], what: str, name: str, base: str) -> Sequence[float]:
    """Returns how much longer one turn at a time takes than on another server, for each round."""
    own, other = (figures["targets"].get(each, {}).get(what, {}) for each in (name, base))
    return [a - b for a, b in zip(own.get(1, ()), other.get(1, ()), strict=True)]


def criterion(figures: dict[str, Any]) -> Criterion:
    """Returns the aim and what was measured of it."""
    longer = statistics.median(more_ms(figures, "total_ms", "ruvd-postgres", "ruvd-sqlite"))
    return Criterion("ms that a turn takes longer than on SQLite", longer, _AIM_MS)


def show_turns(figures: dict[str, Any]) -> None:
    """Prints the figures of turns as a Markdown table."""

    def cell(values: Sequence[float], digits: int) -> str:
        each = spread(values, digits)
        return f"{each['median']:g} ({each['min']:g} to {each['max']:g})"

    print(f"PostgreSQL {figures['postgres']}, smg {figures['smg'] or 'not installed'}\n")
    print(
        "| | turn alone, ms | first token, ms | CPU a turn, ms | 16 at once: turns/s | a turn, ms |"
    )
    print("|---|---|---|---|---|---|")
    for name, each in figures["targets"].items():
        print(
            f"| {name} | {cell(each['total_ms'][1], 2)} | {cell(each['first_ms'][1], 2)}"
            f" | {cell(each['cpu_ms'][1], 2)} | {cell(each['rate'][16], 0)}"
            f" | {cell(each['total_ms'][16], 1)} |"
        )
    print("\nA turn alone takes longer in PostgreSQL by")
    for name, base in (("ruvd-postgres", "ruvd-sqlite"), ("smg-postgres", "smg-memory")):
        if name in figures["targets"]:
            longer = more_ms(figures, "total_ms", name, base)
            print(f"- {name}, than {base}: {cell(longer, 2)} ms")
    print(f"\n{criterion(figures)}")


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Takes all figures, which are also printed at once, and returns them."""
    figures: dict[str, Any] = dict(runner.origin("replicas"))
    print(figures["machine"])
    if "turns" in options.only:
        figures["turns"] = await measure_turns(options, folder)
        show_turns(figures["turns"])
    if "forwarded" in options.only:
        figures["forwarded"] = await replica_forwarding.measure(folder, options.rounds)
        replica_forwarding.show(figures["forwarded"])
    if "moves" in options.only:
        figures["moves"] = await replica_moves.measure(folder, options.prompts)
        replica_moves.show(figures["moves"])
    return figures


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a case in a round")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=replica_moves.PROMPT_WORDS,
        metavar="WORDS", help="the lengths of the first prompts of the sessions that move",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two rounds, one short move")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.prompts = 2, 0.5, (100,)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = runner.run("replicas", measure(options, Path(folder)))
    runner.write_json(options.json, figures)


if __name__ == "__main__":
    main()
