"""Checks that the daemon leaks nothing and answers correctly under mixed load with faults.

It runs two daemons, each a process on a Unix socket with an sqlite store:

remote     `--engine openai` on the mock upstream with 12 callers (`bench/soak_load.py`): turns,
           stateless calls, streams that are abandoned, cancelled, resumed, interrupted or ended
           with their session, callers that find a session busy, repeated request ids, forks and
           batches. Every 45 s the mock is killed and started again a second later.
embedded   the embedded engine with 2 callers: turns, stateless calls, abandoned and cancelled
           streams. Every 90 s its llama.cpp child process is killed, or stopped by a signal; the
           daemon replaces it.

There are more sessions than `max_sessions`, so that sessions are evicted as well. Events of ended
completions are kept within tight limits (1 MiB, 20 s), so that the memory is constant early.

Each second it samples the daemons' resident memory, open files and threads, and from their
Prometheus endpoints the running completions and asyncio tasks. A figure counts as constant if its
median in the last quarter of the time exceeds that in the second quarter by no more than an
allowance (`bench/soak_daemons.py`). At the end no completion may be running, and the number of
tasks may exceed that before the load only by an allowance. Every error is counted. Only provoked
errors are allowed: those that an operation expects, and ENGINE_UNAVAILABLE within 15 s after the
mock was killed or within 30 s after the embedded engine was killed.

Run it with `.venv/bin/python -m bench.soak --seconds 600`, or `make soak`. The exit code is 1 if
anything is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.mock_upstream import PACED_MODEL, token
from bench.soak_daemons import TOKENS, MonitoredDaemon, Upstream
from bench.soak_load import Faults, Load, Tally

# Each operation with its weight in the random choice.
_REMOTE_OPERATIONS = {
    "turn": 30, "stateless": 20, "leave": 10, "cancel": 8, "resume": 8, "repeat": 5, "busy": 4,
    "interrupt": 4, "end": 4, "look": 4, "fork": 3, "batch": 2,
}  # fmt: skip
_EMBEDDED_OPERATIONS = {"turn": 4, "stateless": 2, "leave": 1, "cancel": 1}
# The number of samples that are written for the picture; all samples are judged.
_WRITTEN_SAMPLES = 150
_ALLOWED_TASKS = 4
_HANG_SECONDS = 10
_TITLES = {"done": "operations", "provoked": "provoked errors", "unexpected": "unexpected errors"}
_LIMITS = ("--max-logs-bytes", str(1 << 20), "--completion-retention-seconds", "20")


async def kill_mock(upstream: Upstream, faults: Faults, interval_seconds: float) -> None:
    """Kills and restarts the mock at intervals, until cancelled."""
    while True:
        await asyncio.sleep(interval_seconds)
        faults.kills.append(time.monotonic())
        await upstream.kill()
        await asyncio.sleep(1)
        await upstream.start()


async def kill_child(daemon: MonitoredDaemon, faults: Faults, interval_seconds: float) -> None:
    """Kills and stops the daemon's largest child process, the engine, by turns, until cancelled."""
    for number in itertools.count():
        await asyncio.sleep(interval_seconds)
        children = psutil.Process(daemon.server.process.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            child = max(children, key=lambda process: process.memory_info().rss)
            faults.kills.append(time.monotonic())
            if number % 2:
                child.suspend()
            else:
                child.kill()


async def watch(daemons: Sequence[MonitoredDaemon], began: float) -> None:
    """Takes a sample each second and prints a line each minute, until cancelled."""
    reported = 0
    while True:
        at = time.monotonic() - began
        for daemon in daemons:
            await daemon.sample(at)
        if at // 60 > reported:
            reported = int(at // 60)
            runner.log_progress(
                f"{reported} min: " + ", ".join(state(daemon) for daemon in daemons)
            )
        await asyncio.sleep(1)


def state(daemon: MonitoredDaemon) -> str:
    """Returns a progress line."""
    last, tally = daemon.samples[-1], daemon.load.tally
    return (
        f"{daemon.load.name} {last.resident_mib:.0f} MiB, {last.open_files} files,"
        f" {tally.done.total()} operations, {tally.provoked.total()} provoked errors,"
        f" {tally.unexpected.total()} unexpected errors"
    )


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> tuple[list[MonitoredDaemon], Upstream]:
    """Starts the mock and the daemons, and returns them when they are ready."""
    upstream = await stack.enter_async_context(Upstream(folder))
    daemons = []
    for name in options.only:
        metrics = servers.free_port()
        flags = (*_LIMITS, "--metrics-listen", f"127.0.0.1:{metrics}")
        remote = name == "remote"
        if remote:
            process = servers.ruvd(
                name, folder, upstream.port, store=f"sqlite:{folder / name}.db",
                flags=(*flags, "--max-sessions", "40"),
            )  # fmt: skip
            load = Load(
                name, f"unix:{folder / name}.sock", _REMOTE_OPERATIONS, {"model": PACED_MODEL},
                "".join(token(number) for number in range(TOKENS)), Faults(15.0), Tally(),
            )  # fmt: skip
        else:
            stop = ("--engine-hang-seconds", str(_HANG_SECONDS))
            process = servers.embedded(name, folder, flags=(*flags, "--max-sessions", "3", *stop))
            load = Load(
                name, f"unix:{folder / name}.sock", _EMBEDDED_OPERATIONS, {"max_tokens": 16},
                None, Faults(30.0), Tally(),
            )  # fmt: skip
        server, address = await stack.enter_async_context(process)
        await servers.until_serving(server, address, service="readiness")
        daemon = MonitoredDaemon(load, 12 if remote else 2, server, metrics)
        daemon.tasks_before = (await daemon.read_gauges()).get("tasks")
        daemons.append(daemon)
    return daemons, upstream


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the soak and returns its figures."""
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        async with AsyncExitStack() as stack:
            daemons, upstream = await start(options, Path(name), stack)
            runner.log_progress(
                f"{options.seconds:g} s with {', '.join(daemon.load.name for daemon in daemons)}"
            )
            background: list[asyncio.Future[Any]] = [
                asyncio.create_task(watch(daemons, time.monotonic()))
            ]
            for daemon in daemons:
                faults = daemon.load.faults
                if daemon.load.name == "remote":
                    kills = kill_mock(upstream, faults, min(45.0, options.seconds / 3))
                else:
                    kills = kill_child(daemon, faults, min(90.0, options.seconds / 3))
                background.append(asyncio.create_task(kills))
            load: asyncio.Future[Any] = asyncio.gather(
                *(daemon.load.run(daemon.callers, options.seconds) for daemon in daemons)
            )
            try:
                await asyncio.wait([load, *background], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for running in (load, *background):
                    running.cancel()
                ended = await asyncio.gather(load, *background, return_exceptions=True)
            for failure in ended:
                if isinstance(failure, Exception):
                    raise failure
            return {"parts": {daemon.load.name: await result(daemon) for daemon in daemons}}


async def result(daemon: MonitoredDaemon) -> dict[str, Any]:
    """Returns a daemon's figures, a second after its load has ended."""
    await asyncio.sleep(1)
    gauges = await daemon.read_gauges()
    tally = daemon.load.tally
    step = 1 + len(daemon.samples) // _WRITTEN_SAMPLES
    return {
        "callers": daemon.callers,
        "kills": len(daemon.load.faults.kills),
        "done": dict(tally.done.most_common()),
        "provoked": dict(tally.provoked.most_common()),
        "unexpected": dict(tally.unexpected.most_common()),
        "under_way_at_the_end": gauges.get("completions_active"),
        "tasks": [daemon.tasks_before, gauges.get("tasks")],
        "judged": daemon.judge(),
        "samples": [asdict(sample) for sample in daemon.samples[::step]],
    }


def is_met(part: dict[str, Any]) -> bool:
    """Returns whether all figures are constant, nothing is running and no error was unexpected."""
    constant = all(figure["verdict"] != "not met" for figure in part["judged"])
    before, after = part["tasks"]
    remaining = part["under_way_at_the_end"] or (after or 0) > (before or 0) + _ALLOWED_TASKS
    return constant and not part["unexpected"] and not remaining


def show(figures: dict[str, Any]) -> None:
    for name, part in figures["parts"].items():
        done = sum(part["done"].values())
        print(f"\n{name}: {part['callers']} callers, {done} operations, {part['kills']} kills")
        for figure in part["judged"]:
            if "limit" in figure:
                print(
                    f"  {figure['verdict']}: {figure['what']}: {figure['second_quarter']:.1f} in"
                    f" the second quarter, {figure['last_quarter']:.1f} in the last"
                    f" (at most {figure['limit']:.1f})"
                )
            else:
                print(f"  {figure['verdict']}: {figure['what']}")
        for kind, title in _TITLES.items():
            counts = ", ".join(f"{what} {count}" for what, count in part[kind].items())
            print(f"  {title}: {counts or 'none'}")
        print(
            f"  at the end: {part['under_way_at_the_end']} running completions,"
            f" {part['tasks'][1]} tasks (before the load: {part['tasks'][0]})"
        )
        print(f"  {'met' if is_met(part) else 'NOT MET'}")


def main() -> int:
    parser = runner.argument_parser(__doc__)
    names = ("remote", "embedded")
    parser.add_argument("--seconds", type=float, default=600.0, help="duration of the load")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    machine = describe()
    print(machine, flush=True)
    figures = runner.run("soak", measure(options))
    show(figures)
    written = {"machine": machine, "seconds": options.seconds, **figures}
    runner.write_json(options.json, written)
    return int(not all(is_met(part) for part in figures["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
