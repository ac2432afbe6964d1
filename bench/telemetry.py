"""The cost of telemetry: the same daemon with telemetry off and on, side by side in one run.

All daemons have a mock upstream (`bench/mock_upstream.py`) and every trace is sampled:

off        no endpoint is set, nothing of OpenTelemetry is imported
traces     spans only
metrics    metrics only
on         both, exported by OTLP over gRPC to a process of its own (`bench/otlp_sink.py`)

There are two cases. `pod` is the load that a sidecar has: 64 sessions in parallel on SQLite, 64
tokens an answer, 50 ms to the first token and 10 ms for each. Its figure is the CPU time of the
daemon for one stream, and the aim is at most 5 % more than without telemetry. `saturated` is the
worst case: 16 stateless streams in parallel, 32 tokens each, from an upstream that never waits.

A round takes each daemon in turn, every second round in reverse order. Ratios are of the same
round. The daemons are started anew `--starts` times, because two processes of the same daemon
differ: four pairs with telemetry off in both had ratios of 0.99 to 1.04. The sink, the mock and
the clients share the cores with the daemon. Run it with `.venv/bin/python -m bench.telemetry`; it
takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.mock_upstream import POD_FIRST_MS, POD_MODEL, POD_TOKEN_MS, POD_TOKENS
from bench.relay_clients import GrpcClient, StreamBroken, closing
from bench.relay_targets import POD, Case, Run, Target
from bench.report import spread
from bench.runner import log_progress

_NAMES = ("off", "traces", "metrics", "on")
_MAX_POD_CPU = 1.05
# Each round of `pod` has sessions of its own.
_FLAGS = ("--max-sessions", "100000")


def _environment(name: str, sink_port: int) -> dict[str, str]:
    if name == "off":
        return {}
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }
    if name == "traces":
        variables["OTEL_METRICS_EXPORTER"] = "none"
    if name == "metrics":
        variables["OTEL_TRACES_EXPORTER"] = "none"
    return variables


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> tuple[list[Target], servers.Server]:
    """Starts the servers, makes the first calls, and returns the daemons and the sink."""
    _, port = await stack.enter_async_context(
        servers.mock(folder, tokens=options.tokens, first_ms=POD_FIRST_MS, token_ms=POD_TOKEN_MS)
    )
    sink, sink_port = await stack.enter_async_context(servers.sink(folder))
    targets = []
    for name in options.only:
        daemon = servers.ruvd(
            name,
            folder,
            port,
            store=f"sqlite:{folder / name}.db",
            flags=_FLAGS,
            environment=_environment(name, sink_port),
        )
        server, address = await stack.enter_async_context(daemon)
        await servers.until_serving(server, address, service="readiness")
        clients = (
            GrpcClient(address, options.tokens, sessions=False),
            GrpcClient(address, POD_TOKENS, sessions=True, paced_model=POD_MODEL),
        )
        for client in clients:
            await stack.enter_async_context(closing(client))
        targets.append(Target(name, server, *clients))
    for target in targets:
        await target.warm()
    return targets, sink


async def measure(
    options: argparse.Namespace, targets: Sequence[Target], rounds: Sequence[int]
) -> None:
    """Measures the rounds of these numbers."""
    for number in rounds:
        log_progress(f"round {number + 1} of {options.rounds}")
        order = targets if number % 2 == 0 else targets[::-1]
        for case in (_saturated(options), POD):
            for target in order:
                await target.measure(case, number, options.seconds)


def _saturated(options: argparse.Namespace) -> Case:
    return Case("saturated", options.parallel)


def summary(options: argparse.Namespace, targets: Sequence[Target]) -> dict[str, Any]:
    """Returns the figures of each daemon by name."""
    saturated = _saturated(options)
    base = next((target for target in targets if target.name == "off"), None)
    results: dict[str, Any] = {}
    for target in targets:
        result: dict[str, Any] = {
            "streams_per_second": spread([run.rate for run in target.all(saturated)]),
            "cpu_ms_per_stream": spread([run.cpu_per_1000 for run in target.all(saturated)]),
            "paced_cpu_ms_per_stream": spread([run.cpu_per_1000 for run in target.all(POD)]),
            "resident_mib": round(target.server.memory_mib()),
        }
        if base and target is not base:
            pairs = target.beside(base, saturated)
            result["throughput_of_off"] = spread([mine.rate / its.rate for mine, its in pairs])
            result["cpu_of_off"] = _cpu_ratios(pairs)
            result["paced_cpu_of_off"] = _cpu_ratios(target.beside(base, POD))
        results[target.name] = result
    return results


def _cpu_ratios(pairs: Sequence[tuple[Run, Run]]) -> dict[str, float]:
    return spread([mine.cpu_per_1000 / its.cpu_per_1000 for mine, its in pairs])


def show(results: dict[str, Any]) -> None:
    """Prints the table for bench/README.md."""
    print(
        f"| | pod: CPU a stream, {POD.parallel} paced | of off |"
        " saturated: streams/s | of off | CPU a stream | of off | resident |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        cells = [
            f"{_range(result['paced_cpu_ms_per_stream'], 2)} ms",
            _bold(result.get("paced_cpu_of_off")),
            _range(result["streams_per_second"], 0),
            _bold(result.get("throughput_of_off")),
            f"{result['cpu_ms_per_stream']['median']:.2f} ms",
            _bold(result.get("cpu_of_off")),
            f"{result['resident_mib']} MiB",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    if "paced_cpu_of_off" in results.get("on", {}):
        ratio = results["on"]["paced_cpu_of_off"]["median"]
        print(
            f"\nat a pod's load, telemetry costs {100 * (ratio - 1):.1f} % more CPU a stream"
            f" (aim: at most {100 * (_MAX_POD_CPU - 1):.0f} %:"
            f" {'met' if ratio <= _MAX_POD_CPU else 'missed'})"
        )
        ratio = results["on"]["throughput_of_off"]["median"]
        print(f"saturated, it costs {100 * (1 - ratio):.1f} % of the throughput")


def _bold(spread: dict[str, float] | None) -> str:
    return f"**{_range(spread, 2)}**" if spread else ""


def _range(spread: dict[str, float], digits: int) -> str:
    return (
        f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"
    )


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and ends its processes."""
    exported: Counter[str] = Counter()
    earlier: dict[str, Target] = {}
    starts = min(options.starts, options.rounds)
    for start_number in range(starts):
        rounds = range(options.rounds)[start_number::starts]
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            async with AsyncExitStack() as stack:
                targets, sink = await start(options, Path(folder), stack)
                for target in targets:
                    if target.name in earlier:
                        target.runs = earlier[target.name].runs
                try:
                    await measure(options, targets, rounds)
                except StreamBroken as failure:
                    raise servers.Failed(str(failure)) from failure
                results = summary(options, targets)
                earlier = {target.name: target for target in targets}
            # All processes have ended by now, so the sink has written what it received.
            received = json.loads(sink.log.read_text().splitlines()[-1])
        for what, counts in received.items():
            exported.update({f"{what} of {signal}": count for signal, count in counts.items()})
    if any(name != "off" for name in options.only) and not exported:
        raise servers.Failed("nothing was exported, so nothing was measured")
    return {"results": results, "exported": dict(exported)}


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, off and on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3, help="how often the daemons are started")
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of a case in a round")
    parser.add_argument("--parallel", type=int, default=16, help="streams at a time, saturated")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a stream, saturated")
    parser.add_argument("--only", nargs="+", choices=_NAMES, default=_NAMES)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.only = 1, 1.0, ("off", "on")
    for name in list(os.environ):
        if name.startswith("OTEL_"):  # variables of the caller would change the result
            del os.environ[name]
    machine = describe()
    figures = runner.run("telemetry", run(options), runner=uvloop.run)
    print(machine)
    show(figures["results"])
    print(f"exported: {figures['exported']}")
    runner.write_json(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
