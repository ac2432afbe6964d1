"""`make soak`: everything that a daemon has to endure, one part after the other, and a table.

mixed load       `bench/soak.py`: turns with faults, while engines are killed and stopped
attacks          `bench/hostile.py`: all attacks at once beside a well-behaved client, under 384 MiB
attacks, embedded  the same with the embedded engine, under 1 GiB
full disk        `bench/full_disk.py`: the store's disk is filled and freed
kills            `tests/integration/test_crash.py`: `kill -9` under load, with full-history checks

The exit code is 1 if not all of them hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import relay_servers as servers

_CRASH_RUNS = 4


def parts(options: argparse.Namespace) -> list[tuple[str, Sequence[str]]]:
    """Returns the names of the parts, with their commands."""
    python, seconds = sys.executable, str(options.attack_seconds)
    crash = ("tests/integration/test_crash.py", "-q", "--no-cov", "-n", "2", "--timeout", "36000")
    return [
        ("mixed load", [python, "-m", "bench.soak", "--seconds", str(options.seconds)]),
        ("attacks", [python, "-m", "bench.hostile", "--seconds", seconds]),
        ("attacks, embedded", [python, "-m", "bench.hostile", "--embedded", "--seconds", seconds]),
        ("full disk", [python, "-m", "bench.full_disk", "--seconds", seconds]),
        (f"{options.kills} kills", [python, "-m", "pytest", *crash]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="of the mixed load")
    parser.add_argument("--attack-seconds", type=float, default=60.0, help="of the other parts")
    parser.add_argument("--kills", type=int, default=1000)
    options = parser.parse_args()
    environment = {**os.environ, "CRASH_KILLS": str(-(-options.kills // _CRASH_RUNS))}
    results = []
    for name, command in parts(options):
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, cwd=servers.ROOT, env=environment, check=False).returncode
        results.append((name, code, time.monotonic() - began))
    print(f"\n{'part':20} {'seconds':>8}  result")
    for name, code, seconds in results:
        print(f"{name:20} {seconds:8.0f}  {'held' if code == 0 else 'NOT MET'}")
    return int(any(code for _, code, _ in results))


if __name__ == "__main__":
    sys.exit(main())
