"""Measures how much a session saves over many turns, compared with other approaches.

All approaches use the embedded model and run alternately. Each server is a process of its own, with
the same number of threads, slots and tokens. The cases are:

warm       One conversation on a warm server that nothing else uses: the daemon, and llama.cpp's own
           server, which gets the full history in each request. A session cannot save time here.
window     20 turns in a context that has room for 15: the daemon (at most 10 exchanges are sent, a
           trim leaves 3), the full history, a rolling window of 3 exchanges, the project's original
           design (the last three messages inside the system prompt), and in a few of the turns the
           full history without a cache. Each approach has a slot of its own and idles while the
           others run. Then the daemon runs alone, with 3 s between turns.
sessions   12 alternating conversations on 4 slots: the daemon, llama.cpp's server without a prompt
           cache in memory, as the daemon runs it (`direct`), the same with its default of 8 GiB
           (`direct-8-GiB`), and `hearth-llm`.
restart    A history of 2,500 tokens. The processes are stopped by SIGTERM and started again between
           turns: the daemon, a cold server, `hearth-llm`, and a server whose slot the client saves
           and restores. Times are measured from when each is ready.

Then some of the daemon's answers are compared with uncached answers to the same prompts
(`bench/answer_comparison.py`).

Run it with `.venv/bin/python -m bench.multi_turn`; it takes about six minutes, `--quick` under one.
`hearth-llm` (24 kB) is installed in an environment of its own in the user's cache directory, or in
`--hearth-env DIR`. It buffers 8 kB of a stream before it forwards them, so a short answer arrives
all at once. Its figures are the times that its client sees; the time without buffering is printed
beside them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import environments, runner
from bench import multi_turn_cases as cases
from bench.multi_turn_plan import QUICK, Plan
from bench.multi_turn_restart import restart

_HEARTH = "hearth"
_CASES = {
    "warm": cases.warm,
    "window": cases.window,
    "sessions": cases.sessions,
    "restart": restart,
}


async def measure(options: argparse.Namespace) -> None:
    """Runs the cases one after the other and prints their reports."""
    plan = replace(QUICK if options.quick else Plan(), ruvd_flags=tuple(options.ruvd_flag))
    hearth = None
    if not (options.quick or options.no_hearth):
        try:
            await environments.install(_HEARTH, options.hearth_env.absolute())
            hearth = options.hearth_env.absolute()
        except environments.NotInstalled as reason:
            runner.log_progress(f"hearth-llm is left out: {reason}")
    plan = replace(plan, hearth=hearth)
    figures: dict[str, Any] = {
        **runner.origin("multi_turn"),
        "quick": options.quick,
        "hearth-llm": environments.version(_HEARTH, "hearth-llm") if hearth else None,
        "cases": {},
    }
    print(f"{figures['machine']}\n{figures['command']}", flush=True)
    if options.quick:
        print("a quick run: the aims are those of the complete benchmark and do not apply")
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            async with runner.case_timeout(options.case_timeout_seconds):
                case = await _CASES[name](plan, Path(folder))
        case.show()
        sys.stdout.flush()
        figures["cases"][name] = case.as_json()
        # After each case, as the next one may be interrupted.
        runner.write_json(options.json, figures)


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES))
    parser.add_argument("--quick", action="store_true", help="fewer turns, without hearth-llm")
    parser.add_argument("--case-timeout-seconds", type=float, default=900.0)
    runner.add_ruvd_flag(parser)
    parser.add_argument(
        "--hearth-env",
        type=Path,
        metavar="DIR",
        default=environments.DEFAULT / _HEARTH,
        help="hearth-llm's environment, made if it is missing (default: %(default)s)",
    )
    parser.add_argument("--no-hearth", action="store_true", help="leave hearth-llm out")
    runner.run("multi_turn", measure(parser.parse_args()))


if __name__ == "__main__":
    main()
