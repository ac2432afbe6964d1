"""Runs the benchmarks and writes figures as JSON, tables and pictures to `bench/results`.

`make bench` runs the standard length, which takes about ten minutes. `--quick` takes under two and
writes to `build/bench-quick`, so that its less precise figures do not replace the published ones.
`--full` gives every benchmark its own defaults and takes about forty minutes. The benchmarks run
one after the other, each as a process of its own. `--only NAME` runs some of them and keeps the
results of the others. Programs that ruvd is compared with are installed in environments in the
user's cache directory, never in the project's environment. `--quick` installs nothing and leaves
out the programs that are missing.

Ctrl-C and SIGTERM end the running benchmark, which ends its processes; earlier results are kept.
The exit code is 1 if a benchmark failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench import environments, page
from bench.machine import describe
from bench.suite import BENCHMARKS, NAMES, Benchmark

ROOT = Path(__file__).parent.parent
_RESULTS = Path("bench/results")
_QUICK_RESULTS = Path("build/bench-quick")
# An interrupted benchmark ends its processes first, and some of them end slowly.
_STOP_SECONDS = 60.0


class Interrupted(Exception):
    """The run was interrupted by SIGTERM or Ctrl-C."""


def main() -> int:
    options = parse()
    folder: Path = options.out or (_QUICK_RESULTS if options.length == "quick" else _RESULTS)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    began = time.monotonic()
    failed: list[str] = []
    try:
        failed += [
            benchmark.name
            for benchmark in BENCHMARKS
            if benchmark.name in options.only and not run(benchmark, options, folder)
        ]
        draw(options, folder)
    except Interrupted:
        log("interrupted")
        return 130
    finally:
        page.write(ROOT / folder)
    log(f"{time.monotonic() - began:.0f} s; see {folder}/README.md")
    if failed:
        log(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.set_defaults(length="standard")
    for name in ("quick", "full"):
        length.add_argument(f"--{name}", dest="length", action="store_const", const=name)
    default = [benchmark.name for benchmark in BENCHMARKS if not benchmark.only_if_named]
    parser.add_argument("--only", nargs="+", choices=NAMES, default=default)
    parser.add_argument("--soak-seconds", type=int, metavar="N", help="duration of the soak")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--installed-only", action="store_true", help="install nothing; leave out missing programs"
    )
    parser.add_argument(
        "--litellm-env", type=Path, metavar="DIR", help="LiteLLM's environment, if it is elsewhere"
    )
    options = parser.parse_args()
    if options.length == "quick":
        options.installed_only = True
    return options


def run(benchmark: Benchmark, options: argparse.Namespace, folder: Path) -> bool:
    """Runs a benchmark, shows its output and stores its results. Returns whether it succeeded."""
    figures = folder / f"{benchmark.name}.json"
    arguments = list(benchmark.arguments(options.length))
    if benchmark.name == "soak" and options.soak_seconds:
        arguments = ["--seconds", str(options.soak_seconds)]
    shown = shlex.join(["python", "-m", f"bench.{benchmark.name}", *arguments])
    log(f"{benchmark.title}: {shown}")
    machine, load, began = describe(), os.getloadavg()[0], time.monotonic()
    at = datetime.datetime.now(datetime.UTC)
    command = [
        sys.executable, "-m", f"bench.{benchmark.name}", *arguments,
        *local_arguments(benchmark, options), "--json", str(figures),
    ]  # fmt: skip
    code, output = output_of(command)
    if code == 0 or benchmark.name == "soak":
        run = {
            "command": shown,
            "began": f"{at:%Y-%m-%d %H:%M} UTC",
            "machine": machine,
            "seconds": round(time.monotonic() - began, 1),
            "load": [round(load, 2), round(os.getloadavg()[0], 2)],
            "exit_code": code,
            "output": output,
        }
        page.record(ROOT / folder, benchmark.name, run)
        path = ROOT / figures
        if path.is_file():
            path.write_text(page.without_names(path.read_text()))
    return code == 0


def local_arguments(benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """Returns the arguments that concern only this machine, which no result contains."""
    arguments = []
    if benchmark.name == "relay":
        arguments += ["--installed-only"] if options.installed_only else []
        arguments += ["--litellm-env", str(options.litellm_env)] if options.litellm_env else []
    hearth = environments.DEFAULT / "hearth"
    if benchmark.name == "multi_turn" and options.installed_only:
        arguments += [] if environments.is_installed("hearth", hearth) else ["--no-hearth"]
    return arguments


def output_of(command: Sequence[str]) -> tuple[int, str]:
    """Runs a process to its end, shows its output, and returns its exit code and output.

    The process leads a session of its own, so that Ctrl-C reaches only this process, which then
    interrupts it.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        return process.wait(), "".join(lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            process.wait()


def draw(options: argparse.Namespace, folder: Path) -> None:
    """Draws the pictures, unless matplotlib cannot be had."""
    environment = environments.DEFAULT / "plots"
    if options.installed_only and not environments.is_installed("plots", environment):
        log("no pictures: matplotlib is not installed")
        return
    try:
        asyncio.run(environments.install("plots", environment))
    except environments.NotInstalled as failure:
        log(f"no pictures: {failure}")
        return
    code, _ = output_of([str(environment / "bin" / "python"), "bench/plots.py", str(folder)])
    if code:
        log(f"no pictures: plots.py ended with {code}")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises Interrupted at the first signal and ignores others, so that processes can end."""
    for handled in (signal.SIGINT, signal.SIGTERM):
        signal.signal(handled, signal.SIG_IGN)
    raise Interrupted


def log(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
