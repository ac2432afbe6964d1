"""What a session saves over many turns, and where it saves nothing, beside the other ways.

On the embedded model, all sides in turns in one run, each server a process of its own with the
same number of threads, slots and tokens:

warm       One conversation on a warm server that nobody else uses: the daemon, and llama.cpp's own
           server that is told the whole history. There is nothing to gain here.
window     20 turns with room for 15: the daemon (at most 10 exchanges are sent, a trim leaves 3),
           the whole history, a rolling window of 3 exchanges, the original design (the last three
           lines in the system message), and the whole history without any cache in a few of the
           turns. Each way has a slot of its own, and rests while the others have their turn. Then
           the daemon again, alone, with 3 s between turns.
sessions   12 conversations by turns on 4 slots: the daemon, llama.cpp's own server, `hearth-llm`.
restart    A history of 2,500 tokens, the processes stopped by SIGTERM and started again between
           turns: the daemon, a cold server, `hearth-llm`, and slots that are saved and restored by
           hand. Time counts from when each is ready.

Then some of the daemon's answers are compared with those to the same prompts without any cache
(`bench/answer_comparison.py`).

Run it with `.venv/bin/python -m bench.multi_turn`; it takes about six minutes, `--quick` under one.
`hearth-llm` (24 kB) gets an environment of its own in the user's cache directory, or in
`--hearth-env DIR`. It gathers 8 kB of a stream before it sends them on, so an answer of these
lengths comes all at once: what its client sees counts, and what the engine alone needed is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import environments
from bench import multi_turn_cases as cases
from bench.machine import describe
from bench.multi_turn_plan import QUICK, Plan
from bench.multi_turn_restart import restart
from bench.relay_servers import Failed

_HEARTH = "hearth"
_CASES = {
    "warm": cases.warm,
    "window": cases.window,
    "sessions": cases.sessions,
    "restart": restart,
}


def hearth_version() -> str:
    """The version that its list pins."""
    words = environments.pins(_HEARTH).read_text().split()
    return next(word.partition("==")[2] for word in words if word.startswith("hearth-llm=="))


async def measure(options: argparse.Namespace) -> None:
    """The cases one after the other; their processes end with them, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    plan = replace(QUICK if options.quick else Plan(), ruvd_flags=tuple(options.ruvd_flag))
    hearth = None
    if not (options.quick or options.no_hearth):
        try:
            await environments.install(_HEARTH, options.hearth_env.absolute())
            hearth = options.hearth_env.absolute()
        except environments.NotInstalled as reason:
            print(f"multi_turn: without hearth-llm: {reason}", file=sys.stderr)
    plan = replace(plan, hearth=hearth)
    figures: dict[str, Any] = {
        "machine": describe(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": shlex.join(["python", "-m", "bench.multi_turn", *sys.argv[1:]]),
        "quick": options.quick,
        "hearth-llm": hearth_version() if hearth else None,
        "cases": {},
    }
    print(f"{figures['machine']}\n{figures['command']}", flush=True)
    if options.quick:
        print("a quick run: the criteria are those of the whole one, and mean little here")
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            async with asyncio.timeout(options.most_seconds):
                case = await _CASES[name](plan, Path(folder))
        case.show()
        sys.stdout.flush()
        figures["cases"][name] = case.as_json()
        if options.json:  # after each case, as the next one may be interrupted
            options.json.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES))
    parser.add_argument("--quick", action="store_true", help="less of everything, no hearth-llm")
    parser.add_argument("--most-seconds", type=float, default=900.0, help="a case may take")
    parser.add_argument(
        "--ruvd-flag", action="append", default=[], metavar="FLAG", help="one more of `ruvd serve`"
    )
    parser.add_argument(
        "--hearth-env",
        type=Path,
        metavar="DIR",
        default=environments.DEFAULT / _HEARTH,
        help="hearth-llm's environment, made if it is not there (default: %(default)s)",
    )
    parser.add_argument("--no-hearth", action="store_true", help="leave hearth-llm out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    try:
        asyncio.run(measure(options))
    except Failed as failure:
        print(f"multi_turn: {failure}", file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"multi_turn: a case took more than {options.most_seconds:.0f} s", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
