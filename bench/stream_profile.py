"""Measures the CPU time of a stream in the daemon, by thread, shared object and Python package.

The load is that of a case of `bench.relay` with sessions on SQLite, by default `16`: 16 streams at
a time, 32 tokens each, from a mock that never waits. There are three parts:

threads  CPU time and context switches a stream of each thread, from /proc. `--tree NAME=DIR` adds
         the daemon of another checkout. All daemons run at the same time and are measured in turn,
         in many short rounds, so that other load on the machine affects all of them alike.
layers   samples of `perf record`, by thread and shared object. Left out if there is no perf.
modules  the event loop's own time in Python functions by package, from cProfile in a daemon of its
         own. A function's time includes the C functions that it calls. cProfile makes short
         functions look more expensive than they are, so only the shares are printed.

Run it with `make profile`, or `.venv/bin/python -m bench.stream_profile`; it takes a minute. CPU
time on a busy machine is larger than on an idle one, as its threads share caches and are moved.
"""

from __future__ import annotations

import argparse
import asyncio
import pstats
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.profiled_target import ProfiledTarget, Usage, start, thread_names
from bench.relay_targets import CASES, Case, Run
from bench.report import spread
from bench.runner import log_progress

_OWN = "this tree"
_SAMPLES_PER_SECOND = 997
# Libraries by the names of their shared objects, in the order in which they are looked for.
_LAYERS = (
    ("cygrpc", "gRPC"),
    ("_message.abi3", "protobuf"),
    ("loop.cpython", "event loop (uvloop)"),
    ("libuv", "event loop (uvloop)"),
    ("_asyncio", "event loop (asyncio)"),
    ("parser.cpython", "HTTP parsing (llhttp)"),
    ("_core.cpython", "JSON (msgspec)"),
    ("sqlite3", "SQLite"),
    ("libpython", "Python"),
    ("python3", "Python"),
    ("kernel", "kernel"),
    ("libc.", "libc"),
)
_MIN_SHARE = 0.005
_PACKAGES = (
    "ruvd/core", "ruvd/rpc", "ruvd/engines/chat", "ruvd/engines/http", "ruvd/engines/openai",
    "ruvd/engines", "ruvd/stores", "ruvd/server", "ruvd/telemetry", "google/protobuf", "grpc",
    "/asyncio/", "/logging/", "/json/", "/dataclasses.py", "/contextlib.py",
)  # fmt: skip


async def sample(
    options: argparse.Namespace, target: ProfiledTarget, folder: Path, case: Case
) -> dict[str, dict[str, float]]:
    """Returns the share of each layer in each thread's CPU time, by perf. Empty without perf."""
    perf = shutil.which("perf")
    if perf is None:
        return {}
    log_progress("layers, by perf")
    data = folder / "perf.data"
    recorder = await asyncio.create_subprocess_exec(
        perf, "record", "-q", "-F", str(_SAMPLES_PER_SECOND), "-o", str(data),
        "-p", str(target.server.process.pid),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await target.measure(case, -1, options.sample_seconds)
    finally:
        target.rounds.pop()
        if recorder.returncode is None:
            recorder.send_signal(signal.SIGINT)
        await recorder.wait()
    script = await asyncio.create_subprocess_exec(
        perf, "script", "-i", str(data), "-F", "tid,ip,sym,dso",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    lines, _ = await script.communicate()
    names = thread_names(target)
    counts: dict[str, Counter[str]] = {}
    for line in lines.decode(errors="replace").splitlines():
        if not (found := re.match(r"\s*(\d+)\s.*\((.*?)\)\s*$", line)):
            continue
        thread = names.get(int(found[1]), "") or "other"
        counts.setdefault(thread, Counter())[_layer(found[2])] += 1
    total = sum(sum(layers.values()) for layers in counts.values()) or 1
    return {
        thread: {layer: count / total for layer, count in layers.most_common()}
        for thread, layers in counts.items()
    }


def _layer(shared_object: str) -> str:
    name = shared_object.rpartition("/")[2]
    return next((layer for part, layer in _LAYERS if part in name), "other")


async def profile(
    options: argparse.Namespace, folder: Path, mock_port: int, stack: AsyncExitStack, case: Case
) -> dict[str, float]:
    """Returns the share of each package in the Python functions of the event loop's thread."""
    log_progress("modules, by cProfile")
    file = folder / "profile"
    command = (sys.executable, "-m", "bench.profiled_daemon", str(file))
    target = await start(folder, "profiled", servers.ROOT, mock_port, stack, *command)
    process = psutil.Process(target.server.process.pid)
    process.send_signal(signal.SIGALRM)
    await target.measure(case, 0, options.sample_seconds)
    process.send_signal(signal.SIGALRM)
    async with runner.case_timeout(60):
        while not file.exists():
            # The daemon's interpreter handles the signal when it runs, and it waits for events.
            await target.client.stream(0, paced=False)
    stats: Mapping[Any, Any] = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    seconds: Counter[str] = Counter()
    for (path, _, function), (_, _, own, *_) in stats.items():
        # The loop's C code, with the wait for events and gRPC's calls, counts for what started it.
        if not (path.endswith("asyncio/runners.py") and function == "run"):
            seconds[_package(path)] += own
    total = sum(seconds.values())
    return {package: own / total for package, own in seconds.most_common()}


def _package(path: str) -> str:
    return next((each.strip("/") for each in _PACKAGES if each in path), "other Python code")


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the parts and returns their figures."""
    case = next(each for each in CASES if each.name == options.case)
    trees = {_OWN: servers.ROOT, **dict(options.tree)}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-profile-")))
        _, port = await stack.enter_async_context(
            servers.mock(folder, tokens=32, first_ms=20, token_ms=1)
        )
        targets = [await start(folder, name, tree, port, stack) for name, tree in trees.items()]
        for number in range(options.rounds):
            log_progress(f"threads, round {number + 1} of {options.rounds}")
            for target in targets if number % 2 == 0 else targets[::-1]:
                await target.measure(case, number, options.seconds)
        rounds = [target.runs[case.name] for target in targets]
        figures = {
            **runner.origin("stream_profile"),
            "trees": {
                target.name: _tree_figures(target, targets[0], runs, rounds[0])
                for target, runs in zip(targets, rounds, strict=True)
            },
        }
        figures["layers"] = await sample(options, targets[0], folder, case)
        figures["modules"] = await profile(options, folder, port, stack, case)
    return figures


def _tree_figures(
    target: ProfiledTarget,
    base: ProfiledTarget,
    runs: Mapping[int, Run],
    base_runs: Mapping[int, Run],
) -> dict[str, Any]:
    names, totals = thread_names(target), dict[str, Usage]()
    for thread, usage in target.by_thread().items():
        name = names.get(thread, "") or "other"
        totals[name] = totals.get(name, Usage()).plus(usage)
    threads = {
        name: {
            "cpu_us": round(total.cpu_ns / 1000 / target.streams, 1),
            "voluntary": round(total.voluntary / target.streams, 2),
            "involuntary": round(total.involuntary / target.streams, 2),
        }
        for name, total in sorted(totals.items(), key=lambda item: -item[1].cpu_ns)
        if total.cpu_ns >= 1000 * target.streams  # a microsecond a stream
    }
    figures: dict[str, Any] = {
        "cpu_us": spread(target.cpu_us(), 0),
        "voluntary_switches": spread(target.switches(), 1),
        "streams_per_second": spread([run.rate for run in runs.values()], 0),
        "threads": threads,
    }
    if target is not base:
        pairs = list(zip(base.cpu_us(), target.cpu_us(), strict=True))
        figures["own_cpu_of_this"] = spread([own / other for own, other in pairs])
        rates = [base_runs[number].rate / run.rate for number, run in runs.items()]
        figures["own_rate_of_this"] = spread(rates)
    return figures


def show(figures: Mapping[str, Any]) -> None:
    """Prints the figures as Markdown."""
    for name, tree in figures["trees"].items():
        _show_tree(name, tree)
    total = figures["trees"][_OWN]["cpu_us"]["median"]
    if figures["layers"]:
        print("\n| thread | layer | share | µs a stream |\n|---|---|---|---|")
    for thread, layers in figures["layers"].items():
        for layer, share in layers.items():
            if share >= _MIN_SHARE:
                print(f"| {thread} | {layer} | {100 * share:.1f} % | {total * share:.0f} |")
    print("\n| package, in the event loop's thread | share of the Python code |\n|---|---|")
    for package, share in figures["modules"].items():
        if share >= _MIN_SHARE:
            print(f"| {package} | {100 * share:.1f} % |")


def _show_tree(name: str, tree: Mapping[str, Any]) -> None:
    cpu, switches = tree["cpu_us"], tree["voluntary_switches"]
    print(
        f"\n{name}: {cpu['median']:.0f} µs of CPU a stream ({cpu['min']:.0f} to {cpu['max']:.0f}),"
        f" {switches['median']} voluntary context switches,"
        f" {tree['streams_per_second']['median']:.0f} streams a second"
    )
    for what, key in (("CPU", "own_cpu_of_this"), ("rate", "own_rate_of_this")):
        if ratio := tree.get(key):
            values = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
            print(f"  {what} of {_OWN}, of this one's: {values}")
    print("\n| thread | CPU, µs a stream | voluntary switches | displaced |\n|---|---|---|---|")
    for thread, used in tree["threads"].items():
        figures = f"{used['cpu_us']:.0f} | {used['voluntary']} | {used['involuntary']}"
        print(f"| {thread} | {figures} |")


def _named_tree(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and (Path(folder) / "ruvd").is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, with a checkout of ruvd")
    return name, Path(folder).absolute()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a round")
    parser.add_argument("--sample-seconds", type=float, default=6.0, help="duration of a profile")
    names = [case.name for case in CASES]
    parser.add_argument("--case", choices=names, default="16", help="one of bench.relay's cases")
    parser.add_argument(
        "--tree",
        type=_named_tree,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another checkout to compare with; may be given more than once",
    )
    return parser.parse_args(arguments)


def main() -> int:
    figures = runner.run("stream_profile", run(options := parse()), runner=uvloop.run)
    print(describe())
    show(figures)
    runner.write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
