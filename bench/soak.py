"""Whether the daemon stays level and right under a mixed load with faults, for as long as wanted.

Two daemons, each a process on a Unix socket with a store on sqlite:

remote     `--engine openai` on the mock upstream, 12 callers (`bench/soak_load.py`): turns,
           stateless calls, streams that are left, cancelled, resumed, interrupted or ended with
           their session, second callers, repeated request ids, forks, batches. The mock is killed
           by its process id and started again a second later, every 45 s.
embedded   the embedded engine, 2 callers with turns, stateless, left and cancelled streams. Its
           llama.cpp child is killed every 90 s; the daemon starts another.

Sessions are more than `max_sessions`, so they are evicted, too. What is kept of ended completions
is bounded tightly (1 MiB, 20 s), so that memory is level early.

Each second the daemons' resident memory, open files and threads are taken, and the completions and
asyncio tasks under way, by their Prometheus endpoint. Level means: the median of the last quarter
of the time is at most so much above that of the second (`bench/soak_daemons.py`). At the end no
completion is under way, and no more tasks than before, but for a few. Every error is counted, and
none but those provoked is allowed: those that an operation asks for, and ENGINE_UNAVAILABLE within
15 s (30 s) of a kill.

Run it with `.venv/bin/python -m bench.soak --seconds 600`, or `make soak`. Exit code 1 if anything
is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
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
from bench.machine import describe
from bench.mock_upstream import PACED_MODEL, token
from bench.relay_targets import tell
from bench.soak_daemons import TOKENS, Part, Upstream
from bench.soak_load import Faults, Load, Tally

_OPERATIONS = {
    "turn": 30, "stateless": 20, "leave": 10, "cancel": 8, "resume": 8, "repeat": 5, "busy": 4,
    "interrupt": 4, "end": 4, "look": 4, "fork": 3, "batch": 2,
}  # fmt: skip
_FEW = {"turn": 4, "stateless": 2, "leave": 1, "cancel": 1}
# Samples that are written for a picture; all of them are judged.
_KEPT = 150
_MORE_TASKS = 4
_BOUNDS = ("--max-logs-bytes", str(1 << 20), "--completion-retention-seconds", "20")


async def kill_mock(upstream: Upstream, faults: Faults, every: float) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(every)
        faults.kills.append(time.monotonic())
        await upstream.kill()
        await asyncio.sleep(1)
        await upstream.start()


async def kill_child(part: Part, faults: Faults, every: float) -> None:
    """Until cancelled: the largest child is the one that generates."""
    while True:
        await asyncio.sleep(every)
        children = psutil.Process(part.server.process.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            child = max(children, key=lambda each: each.memory_info().rss)
            faults.kills.append(time.monotonic())
            child.kill()


async def watch(parts: Sequence[Part], began: float) -> None:
    """Until cancelled: a sample each second, a line each minute."""
    told = 0
    while True:
        at = time.monotonic() - began
        for part in parts:
            await part.sample(at)
        if at // 60 > told:
            told = int(at // 60)
            tell(f"{told} min: " + ", ".join(state(part) for part in parts))
        await asyncio.sleep(1)


def state(part: Part) -> str:
    last, tally = part.samples[-1], part.load.tally
    return (
        f"{part.load.name} {last.resident_mib:.0f} MiB, {last.open_files} files,"
        f" {tally.done.total()} done, {tally.provoked.total()} provoked,"
        f" {tally.unexpected.total()} unexpected"
    )


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> tuple[list[Part], Upstream]:
    upstream = await stack.enter_async_context(Upstream(folder))
    parts = []
    for name in options.only:
        metrics = servers.free_port()
        flags = (*_BOUNDS, "--metrics-listen", f"127.0.0.1:{metrics}")
        remote = name == "remote"
        if remote:
            daemon = servers.ruvd(
                name, folder, upstream.port, store=f"sqlite:{folder / name}.db",
                flags=(*flags, "--max-sessions", "40"),
            )  # fmt: skip
            load = Load(
                name, f"unix:{folder / name}.sock", _OPERATIONS, {"model": PACED_MODEL},
                "".join(token(number) for number in range(TOKENS)), Faults(15.0), Tally(),
            )  # fmt: skip
        else:
            daemon = servers.embedded(name, folder, flags=(*flags, "--max-sessions", "3"))
            load = Load(
                name, f"unix:{folder / name}.sock", _FEW, {"max_tokens": 16}, None, Faults(30.0),
                Tally(),
            )  # fmt: skip
        server, address = await stack.enter_async_context(daemon)
        await servers.until_serving(server, address, service="readiness")
        part = Part(load, 12 if remote else 2, server, metrics)
        part.tasks_before = (await part.told()).get("tasks")
        parts.append(part)
    return parts, upstream


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole soak; its processes end with it, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        async with AsyncExitStack() as stack:
            parts, upstream = await start(options, Path(name), stack)
            tell(f"{options.seconds:g} s with {', '.join(part.load.name for part in parts)}")
            beside: list[asyncio.Future[Any]] = [
                asyncio.create_task(watch(parts, time.monotonic()))
            ]
            for part in parts:
                faults = part.load.faults
                every = min(45.0 if part.load.name == "remote" else 90.0, options.seconds / 3)
                kill = (
                    kill_mock(upstream, faults, every)
                    if part.load.name == "remote"
                    else kill_child(part, faults, every)
                )
                beside.append(asyncio.create_task(kill))
            load: asyncio.Future[Any] = asyncio.gather(
                *(part.load.run(part.callers, options.seconds) for part in parts)
            )
            try:
                await asyncio.wait([load, *beside], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in beside:
                    each.cancel()
                ended = await asyncio.gather(*beside, return_exceptions=True)
            for failure in ended:
                if isinstance(failure, Exception):
                    raise failure
            await load
            return {"parts": {part.load.name: await result(part) for part in parts}}


async def result(part: Part) -> dict[str, Any]:
    """What a part has come to, after its load."""
    await asyncio.sleep(1)
    left = await part.told()
    tally = part.load.tally
    return {
        "callers": part.callers,
        "kills": len(part.load.faults.kills),
        "done": dict(tally.done.most_common()),
        "provoked": dict(tally.provoked.most_common()),
        "unexpected": dict(tally.unexpected.most_common()),
        "under_way_at_the_end": left.get("completions_active"),
        "tasks": [part.tasks_before, left.get("tasks")],
        "judged": part.judge(),
        "samples": [asdict(sample) for sample in part.samples[:: 1 + len(part.samples) // _KEPT]],
    }


def is_met(part: dict[str, Any]) -> bool:
    """Everything is level, nothing is left under way, and no error was unexpected."""
    level = all(each["verdict"] != "not met" for each in part["judged"])
    before, after = part["tasks"]
    left = part["under_way_at_the_end"] or (after or 0) > (before or 0) + _MORE_TASKS
    return level and not part["unexpected"] and not left


def show(figures: dict[str, Any]) -> None:
    for name, part in figures["parts"].items():
        done = sum(part["done"].values())
        print(f"\n{name}: {part['callers']} callers, {done} operations, {part['kills']} kills")
        for each in part["judged"]:
            if "most" in each:
                print(
                    f"  {each['verdict']}: {each['what']}: {each['second_quarter']:.1f}, at the end"
                    f" {each['last_quarter']:.1f} (at most {each['most']:.1f})"
                )
            else:
                print(f"  {each['verdict']}: {each['what']}")
        for kind in ("done", "provoked", "unexpected"):
            told = ", ".join(f"{what} {count}" for what, count in part[kind].items())
            print(f"  {kind}: {told or 'none'}")
        print(
            f"  at the end: {part['under_way_at_the_end']} completions under way,"
            f" {part['tasks'][1]} tasks (before: {part['tasks'][0]})"
        )
        print(f"  {'met' if is_met(part) else 'NOT MET'}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("remote", "embedded")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    machine = describe()
    print(machine, flush=True)
    try:
        figures = asyncio.run(measure(options))
    except servers.Failed as failure:
        print(f"soak: {failure}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    show(figures)
    if options.json:
        figures = {"machine": machine, "seconds": options.seconds, **figures}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(not all(is_met(part) for part in figures["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
