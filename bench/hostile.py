"""Measures one well-behaved client beside all attacks of `bench/attackers.py` at once.

The daemon runs with an sqlite store under 384 MiB: in a control group where this process may make
one, else with `max_memory_bytes` alone. The engine is the mock upstream, which answers at once. The
client asks a turn every 20 ms in a session of its own, which it ends after ten turns. Measured are
the times to the first token. With `--embedded` the engine is the embedded one, under 1 GiB
together, large schemas are among the attacks, and the client reads a session of its own
(GetSession), because the answers of an engine with four slots have to wait for one. A refused call
is counted by its reason and is not among the times.

The daemon has `max_connection_calls` 16, as docs/operations.md recommends for callers that are not
trusted; `--connection-calls 0` measures without that limit.

It holds if the daemon lives, its resident memory stays below the limit, no call ends with a bare
status (but for what gRPC refuses above its receive limit), and the client's 99th percentile is
below 500 ms. An attacker's own deadline is no refusal, where its calls wait for the engine: a huge
answer may take longer, and so may all completions on the embedded engine's four slots. The other
calls of the same connection wait for these in the attacker's gRPC then. The attackers run with a
lower priority than the daemon and the client, because all share the cores of this machine.

Run it with `.venv/bin/python -m bench.hostile --seconds 60`. The exit code is 1 if not all holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench import relay_servers as servers
from bench import runner
from bench.attackers import OWN_DEADLINE, outcome, turn
from bench.control_group import ControlGroup, control_group
from bench.mock_upstream import MODEL
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

LIMIT_BYTES = 384 << 20
# The daemon's default in such a group. It is set, because the daemon may not see the group's limit.
MAX_MEMORY_BYTES = LIMIT_BYTES * 5 // 6
EMBEDDED_LIMIT_BYTES = 1 << 30
_EMBEDDED_MEMORY_BYTES = EMBEDDED_LIMIT_BYTES // 4
MAX_P99_SECONDS = 0.5
_TURNS = 10
_PAUSE_SECONDS = 0.02
_RETRY_SECONDS = 0.2
_SAMPLE_SECONDS = 0.05
ALLOWED = {"answered", "sent", "too large for gRPC"}
_SLOW = {"huge answers"}


@dataclass
class WellBehaved:
    """A client that asks one turn after the other, and the times to its first tokens."""

    embedded: bool
    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    async def run(self, address: str, until: float) -> None:
        """Asks until the time is over."""
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = pb_grpc.SessionServiceStub(channel)
            if self.embedded:
                await stub.CreateSession(pb.CreateSessionRequest(session_id="well-behaved"))
            while time.monotonic() < until:
                if self.embedded:
                    await self._read(stub)
                    continue
                for _ in range(_TURNS):
                    await self._ask(stub)
                with suppress(grpc.aio.AioRpcError):
                    end = pb.EndSessionRequest(session_id="well-behaved", allow_missing=True)
                    await stub.EndSession(end)

    async def _ask(self, stub: Any) -> None:
        request = turn("What is a sidecar?")
        request.session_id = "well-behaved"
        began, first = time.perf_counter(), None
        try:
            async for response in stub.Complete(request, timeout=60):
                if first is None and response.event.HasField("delta"):
                    first = time.perf_counter() - began
        except grpc.aio.AioRpcError as error:
            self.outcomes[outcome(error)] += 1
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            self.outcomes["answered"] += 1
            if first is not None:
                self.seconds.append(first)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _read(self, stub: Any) -> None:
        began = time.perf_counter()
        try:
            await stub.GetSession(pb.GetSessionRequest(session_id="well-behaved"), timeout=60)
        except grpc.aio.AioRpcError as error:
            self.outcomes[outcome(error)] += 1
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            self.outcomes["answered"] += 1
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_SECONDS)

    def figures(self) -> dict[str, Any]:
        """Returns percentiles in milliseconds and the outcomes."""
        times = sorted(self.seconds)
        cuts = (
            statistics.quantiles(times, n=1000, method="inclusive")
            if len(times) > 1
            else [float("inf")] * 999
        )
        return {
            "p50_ms": round(cuts[499] * 1000, 1),
            "p99_ms": round(cuts[989] * 1000, 1),
            "max_ms": round(max(times, default=float("inf")) * 1000, 1),
            "outcomes": dict(self.outcomes),
        }


async def watch_memory(pid: int, peaks: list[float]) -> None:
    """Follows the resident memory of a process until cancelled."""
    process = psutil.Process(pid)
    while True:
        with suppress(psutil.NoSuchProcess):
            peaks[0] = max(peaks[0], process.memory_info().rss / (1 << 20))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the attack and returns its figures."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-bench-")))
        mock = servers.mock(folder, tokens=32, first_ms=20.0, token_ms=2.0)
        _, port = await stack.enter_async_context(mock)
        limit = EMBEDDED_LIMIT_BYTES if options.embedded else LIMIT_BYTES
        group = stack.enter_context(control_group(limit))
        port = 0 if options.embedded else port
        flags = options.flag
        if options.connection_calls:
            flags = ["--max-connection-calls", str(options.connection_calls), *flags]
        running = daemon(folder, port, group, flags)
        server, address = await stack.enter_async_context(running)
        await servers.until_serving(server, address, service="readiness")
        seconds = str(options.seconds)
        command = (
            "nice", "-n", "10", sys.executable, "-m", "bench.attackers", "--address", address,
            "--seconds", seconds, *(("--embedded",) if options.embedded else ()),
            "--only", *options.only,
        )  # fmt: skip
        peaks = [0.0]
        watching = asyncio.create_task(watch_memory(server.process.pid, peaks))
        attacking = servers.running("attackers", folder, *command, pipe_output=True)
        attackers = await stack.enter_async_context(attacking)
        assert attackers.process.stdout is not None
        line = await attackers.process.stdout.readline()
        if line.strip() != b"attacking":
            await attackers.process.wait()
            attackers.check_runs()
        client = WellBehaved(options.embedded)
        await client.run(address, time.monotonic() + options.seconds)
        output = await attackers.process.stdout.read()
        await attackers.process.wait()
        attacks = json.loads(output)
        watching.cancel()
        server.check_runs()
        lines = server.log.read_text(errors="replace")
        return {
            "embedded": options.embedded,
            "connection_calls": options.connection_calls,
            "limit_mib": (_EMBEDDED_MEMORY_BYTES if options.embedded else LIMIT_BYTES) >> 20,
            "group": group is not None,
            "peak_mib": round(peaks[0], 1),
            "group_peak_mib": group and group.peak_mib(),
            "tracebacks": lines.count("Traceback"),
            "client": client.figures(),
            "attacks": attacks,
        }


def daemon(folder: Path, port: int, group: ControlGroup | None, more_flags: Sequence[str]) -> Any:
    """Runs the daemon, in the control group if there is one.

    Its engine is the mock upstream, or the embedded one if `port` is 0.
    """
    engine: tuple[str, ...] = (
        "--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1", "--model", MODEL,
        "--max-memory-bytes", str(MAX_MEMORY_BYTES),
    )  # fmt: skip
    if not port:
        engine = (
            "--llama-max-memory-bytes", str(EMBEDDED_LIMIT_BYTES * 3 // 4),
            "--max-memory-bytes", str(_EMBEDDED_MEMORY_BYTES * 5 // 6),
        )  # fmt: skip
    store = f"sqlite:{folder / 'hostile.db'}"
    flags = (*engine, "--store", store, "--max-sessions", "2000", *more_flags)
    return servers.daemon("hostile", folder, *flags, under=group.command if group else None)


def broken(figures: dict[str, Any]) -> list[str]:
    """Returns what does not hold."""
    found = []
    if figures["peak_mib"] >= figures["limit_mib"]:
        found.append(f"the resident memory reached {figures['peak_mib']} MiB")
    if figures["client"]["p99_ms"] >= MAX_P99_SECONDS * 1000:
        found.append(f"the client's 99th percentile is {figures['client']['p99_ms']} ms")
    if figures["tracebacks"]:
        found.append(f"{figures['tracebacks']} tracebacks in the log")
    for name, counts in {**figures["attacks"], "client": figures["client"]["outcomes"]}.items():
        bare = [each for each in counts if each not in ALLOWED and not each.isupper()]
        if name in _SLOW or (figures["embedded"] and name != "client"):
            bare = [each for each in bare if not each.startswith(OWN_DEADLINE)]
        found += [f"{name}: {each} ({counts[each]})" for each in bare]
    return found


def show(figures: dict[str, Any]) -> None:
    """Prints the table."""
    client = figures["client"]
    for name, counts in figures["attacks"].items():
        print(f"  {name:24} {', '.join(f'{what} {count}' for what, count in counts.items())}")
    counts = ", ".join(f"{what} {count}" for what, count in client["outcomes"].items())
    print(f"  {'well-behaved client':24} {counts}")
    print(
        f"  its times: median {client['p50_ms']} ms, 99th percentile"
        f" {client['p99_ms']} ms, longest {client['max_ms']} ms"
    )
    print(
        f"  the daemon's memory: at most {figures['peak_mib']} MiB of {figures['limit_mib']}"
        f" ({'in a control group' if figures['group'] else 'no control group could be made'})"
    )
    for each in broken(figures):
        print(f"  NOT MET: {each}")


def main() -> int:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the attacks")
    parser.add_argument("--embedded", action="store_true", help="attack the embedded engine")
    parser.add_argument("--only", nargs="*", default=(), help="attacks, by method of Attackers")
    parser.add_argument(
        "--connection-calls", type=int, default=16, help="the daemon's max_connection_calls"
    )
    parser.add_argument(
        "--flag", action="append", default=[], help="another flag of the daemon, as --flag=--x=1"
    )
    options = parser.parse_args()
    figures = {**runner.origin("hostile"), **runner.run("hostile", measure(options))}
    print(figures["machine"])
    show(figures)
    runner.write_json(options.json, figures)
    return int(bool(broken(figures)))


if __name__ == "__main__":
    sys.exit(main())
