"""All benchmarks in one session: figures as JSON, tables and pictures in `bench/results`.

`make bench` runs this in its standard form, about ten minutes; `--quick` takes under two and writes
to `build/bench-quick`, so that what is shown stays what was measured well; `--full` gives every
benchmark its own defaults, about forty. Each is a process of its own, one after the other, and can
be run by itself; `--only NAME` runs some and keeps the results of the others. What is compared with
gets environments of its own in the user's cache directory, nothing is installed into the project's.
With `--quick` nothing is installed at all: what is not there is left out.

Ctrl-C and SIGTERM end the running benchmark, which ends its processes; results before it are kept.
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
from bench.suite import NAMES, STEPS, Step

ROOT = Path(__file__).parent.parent
_RESULTS = Path("bench/results")
_QUICK_RESULTS = Path("build/bench-quick")
# An interrupted benchmark ends its processes, of which some take their time.
_STOP_SECONDS = 60.0


class Interrupted(Exception):
    """SIGTERM, or Ctrl-C."""


def main() -> int:
    options = parse()
    folder: Path = options.out or (_QUICK_RESULTS if options.form == "quick" else _RESULTS)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    began = time.monotonic()
    failed: list[str] = []
    try:
        failed += [
            step.name
            for step in STEPS
            if step.name in options.only and not run(step, options, folder)
        ]
        draw(options, folder)
    except Interrupted:
        tell("interrupted")
        return 130
    finally:
        page.write(ROOT / folder)
    tell(f"{time.monotonic() - began:.0f} s; see {folder}/README.md")
    if failed:
        tell(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = parser.add_mutually_exclusive_group()
    form.set_defaults(form="standard")
    for name in ("quick", "full"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    usual = [step.name for step in STEPS if not step.asked_only]
    parser.add_argument("--only", nargs="+", choices=NAMES, default=usual)
    parser.add_argument("--soak-seconds", type=int, metavar="N", help="how long the soak lasts")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--installed-only", action="store_true", help="install nothing, leave out what is not there"
    )
    parser.add_argument(
        "--litellm-env", type=Path, metavar="DIR", help="LiteLLM's environment, if elsewhere"
    )
    options = parser.parse_args()
    if options.form == "quick":
        options.installed_only = True
    return options


def run(step: Step, options: argparse.Namespace, folder: Path) -> bool:
    """Run a benchmark, showing what it prints; whether it succeeded. Its results are kept."""
    figures = folder / f"{step.name}.json"
    arguments = list(step.arguments(options.form))
    if step.name == "soak" and options.soak_seconds:
        arguments = ["--seconds", str(options.soak_seconds)]
    shown = shlex.join(["python", "-m", f"bench.{step.name}", *arguments])
    tell(f"{step.title}: {shown}")
    machine, load, began = describe(), os.getloadavg()[0], time.monotonic()
    at = datetime.datetime.now(datetime.UTC)
    command = [
        sys.executable, "-m", f"bench.{step.name}", *arguments, *where(step, options),
        "--json", str(figures),
    ]  # fmt: skip
    code, output = output_of(command)
    if code == 0 or step.name == "soak":
        run = {
            "command": shown,
            "began": f"{at:%Y-%m-%d %H:%M} UTC",
            "machine": machine,
            "seconds": round(time.monotonic() - began, 1),
            "load": [round(load, 2), round(os.getloadavg()[0], 2)],
            "exit_code": code,
            "output": output,
        }
        page.record(ROOT / folder, step.name, run)
        path = ROOT / figures
        if path.is_file():
            path.write_text(page.without_names(path.read_text()))
    return code == 0


def where(step: Step, options: argparse.Namespace) -> list[str]:
    """Arguments about this machine, which are in no result."""
    given = []
    if step.name == "relay":
        given += ["--installed-only"] if options.installed_only else []
        given += ["--litellm-env", str(options.litellm_env)] if options.litellm_env else []
    hearth = environments.DEFAULT / "hearth"
    if step.name == "multi_turn" and options.installed_only:
        given += [] if environments.is_whole("hearth", hearth) else ["--no-hearth"]
    return given


def output_of(command: Sequence[str]) -> tuple[int, str]:
    """Run a process to its end; its exit code and standard output, which is shown as well.

    It leads a session of its own, so that Ctrl-C comes to this process alone, which passes it on.
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
    """Draw the pictures, unless what draws them is not there."""
    environment = environments.DEFAULT / "plots"
    if options.installed_only and not environments.is_whole("plots", environment):
        tell("no pictures: matplotlib is not installed")
        return
    try:
        asyncio.run(environments.install("plots", environment))
    except environments.NotInstalled as failure:
        tell(f"no pictures: {failure}")
        return
    code, _ = output_of([str(environment / "bin" / "python"), "bench/plots.py", str(folder)])
    if code:
        tell(f"no pictures: plots.py ended with {code}")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Only the first: what it ends needs its time."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted


def tell(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
