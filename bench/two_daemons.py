"""Measures the most that a second process could gain: the streams of one daemon, shared by two.

Both have a store of their own and no stream has to be forwarded between them, so workers that share
a store and a listening socket could only be slower. The load is that of `bench.stream_profile`. The
mock upstream and the client share the machine's cores with the daemons, as an engine and a service
do in a pod.

Run it with `.venv/bin/python -m bench.two_daemons`; it takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.profiled_target import start
from bench.relay_targets import Case
from bench.report import spread
from bench.runner import log_progress

_PARALLEL = (16, 32)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds, with one and with two daemons in turn, and returns their figures."""
    figures: dict[str, Any] = {**runner.origin("two_daemons")}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-two-")))
        _, port = await stack.enter_async_context(
            servers.mock(folder, tokens=32, first_ms=20, token_ms=1)
        )
        first = await start(folder, "first", servers.ROOT, port, stack)
        second = await start(folder, "second", servers.ROOT, port, stack)
        for parallel in _PARALLEL:
            whole, half = Case(str(parallel), parallel), Case("half", parallel // 2)
            one, two, cpu_of_one = [], [], []
            for number in range(options.rounds):
                log_progress(f"{parallel} streams, round {number + 1} of {options.rounds}")
                await first.measure(whole, number, options.seconds)
                await asyncio.gather(
                    first.measure(half, number, options.seconds),
                    second.measure(half, number, options.seconds),
                )
                alone, shared = first.runs[whole.name][number], first.runs[half.name][number]
                one.append(alone.rate)
                two.append(shared.rate + second.runs[half.name][number].rate)
                cpu_of_one.append(shared.cpu_per_1000 / alone.cpu_per_1000)
            figures[str(parallel)] = {
                "streams_per_second_of_one": statistics.median(one),
                "streams_per_second_of_two": statistics.median(two),
                "rate_of_one": spread([more / less for less, more in zip(one, two, strict=True)]),
                "cpu_of_one": spread(cpu_of_one),
            }
    return figures


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as Markdown."""
    print("| streams | one daemon | two | rate of two, of one's | CPU a stream, of one's |")
    print("|---|---|---|---|---|")
    for parallel in map(str, _PARALLEL):
        row = figures[parallel]
        one, two = row["streams_per_second_of_one"], row["streams_per_second_of_two"]
        ratios = (
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            for ratio in (row["rate_of_one"], row["cpu_of_one"])
        )
        print(f"| {parallel} | {one:.0f}/s | {two:.0f}/s | {' | '.join(ratios)} |")


def main() -> int:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a round")
    options = parser.parse_args()
    figures = runner.run("two_daemons", run(options), runner=uvloop.run)
    print(describe())
    show(figures)
    runner.write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
