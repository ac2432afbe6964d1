"""The streams of a client in Go, beside those of the Python client in `bench/relay.py`.

The Go client is what a service would write: grpc-go and the generated stub. It parses every
message, so it takes more of the machine that it shares with the server than the Python client,
which reads frames only (`bench/grpc_client.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.mock_upstream import MODEL
from bench.relay_clients import TEXT
from bench.relay_servers import Failed, Server
from bench.report import percentile, spread
from bench.runner import log_progress

_PARALLEL = 16
_ROUNDS = itertools.count()


async def measure(
    client: Path, targets: Mapping[str, tuple[Server, str]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Measures 16 streams on one connection, and on one each, at each server in turn.

    `targets` has the servers and their addresses by name; those named with "sessions" get a session
    for each parallel stream.
    """
    found: dict[str, dict[str, Any]] = {}
    cases = {f"{_PARALLEL}": 1, f"{_PARALLEL}-clients": _PARALLEL}
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        log_progress(f"the client in Go, round {number + 1} of {rounds}")
        for case, connections in cases.items():
            for name, (server, address) in targets.items():
                run = await _run(client, server, address, name, connections, seconds)
                runs.setdefault((case, name), []).append(run)
    for (case, name), all_runs in runs.items():
        found.setdefault(case, {})[name] = _row(all_runs)
    return found


async def _run(
    client: Path, server: Server, address: str, name: str, connections: int, seconds: float
) -> dict[str, Any]:
    command = [
        str(client), "-address", address, "-model", MODEL, "-text", TEXT,
        "-parallel", str(_PARALLEL), "-connections", str(connections), "-seconds", str(seconds),
    ]  # fmt: skip
    if "sessions" in name:
        command += ["-session", f"go-{next(_ROUNDS)}"]
    cpu = server.cpu_seconds()
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()
    if process.returncode:
        raise Failed(f"the client in Go: {errors.decode(errors='replace')[:500]}")
    run: dict[str, Any] = json.loads(output)
    run["server_cpu_seconds"] = server.cpu_seconds() - cpu
    return run


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    firsts = [1000 * first for run in runs for first in run["first_seconds"]]
    return {
        "streams_per_second": spread([run["streams"] / run["seconds"] for run in runs]),
        "cpu_seconds_per_1000": spread(
            [1000 * run["server_cpu_seconds"] / run["streams"] for run in runs]
        ),
        "client_cpu_seconds_per_1000": spread(
            [1000 * run["cpu_seconds"] / run["streams"] for run in runs]
        ),
        "first_token_ms": {
            "p50": round(statistics.median(firsts), 3),
            "p99": round(percentile(firsts, 0.99), 3),
        },
    }


def show(figures: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Prints a table of each case."""
    for case, rows in figures.items():
        title = "one connection" if case == str(_PARALLEL) else "a connection each"
        print(f"\na client in Go, {_PARALLEL} streams, {title}")
        for name, row in rows.items():
            rate, cpu = row["streams_per_second"], row["cpu_seconds_per_1000"]
            print(
                f"  {titles[name]:44} {rate['median']:7.0f}/s ({rate['min']:.0f} to"
                f" {rate['max']:.0f}), {cpu['median']:.2f} s of CPU per 1,000"
            )
