"""What watching costs: the same daemon with telemetry on and off, side by side in one run.

Daemons on a mock upstream (`bench/mock_upstream.py`), 32 tokens a stream, measured in turns:

off        no endpoint is set: nothing of OpenTelemetry is imported
traces     spans only, every trace is sampled
metrics    metrics only
on         both, by OTLP over gRPC to a sink that is a process of its own (`bench/otlp_sink.py`)

Two figures of each: streams a second with 16 in parallel, the mock not paced, which is the worst
case there is; and the CPU time of a stream at a pace (50 ms to the first token, 10 ms a token, 64
streams in parallel), as a pod sees it. A round takes each daemon in turn, every second one
backwards; ratios are of the same round. The sink, the mock and the clients share the machine's
cores with the daemon. Run it with `.venv/bin/python bench/telemetry.py`; it takes about three
minutes. The aim: at most 10 % of the throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench import relay_servers as servers
from bench.machine import describe
from bench.relay_clients import GrpcClient, StreamBroken, closing
from bench.relay_targets import Case, Target
from bench.runner import log_progress

_NAMES = ("off", "traces", "metrics", "on")
_FIRST_MS, _TOKEN_MS, _PACED = 50.0, 10.0, 64


def _environment(name: str, sink_port: int) -> dict[str, str]:
    if name == "off":
        return {}
    chosen = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }
    if name == "traces":
        chosen["OTEL_METRICS_EXPORTER"] = "none"
    if name == "metrics":
        chosen["OTEL_TRACES_EXPORTER"] = "none"
    return chosen


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> tuple[list[Target], servers.Server]:
    """Start everything, and warm it."""
    _, port = await stack.enter_async_context(
        servers.mock(folder, tokens=options.tokens, first_ms=_FIRST_MS, token_ms=_TOKEN_MS)
    )
    sink, sink_port = await stack.enter_async_context(servers.sink(folder))
    targets = []
    for name in options.only:
        daemon = servers.ruvd(
            name, folder, port, store="memory", environment=_environment(name, sink_port)
        )
        server, address = await stack.enter_async_context(daemon)
        await servers.until_serving(server, address, service="readiness")
        client = GrpcClient(address, options.tokens, sessions=False)
        targets.append(Target(name, server, await stack.enter_async_context(closing(client))))
    for target in targets:
        await target.warm()
    return targets, sink


async def paced_cpu_ms(target: Target, seconds: float) -> float:
    """CPU time of a stream at a pace, as many in parallel as a pod has."""
    target.client.new_round()
    until, done = time.perf_counter() + seconds, 0
    cpu = target.server.cpu_seconds()

    async def work(worker: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await target.client.stream(worker, paced=True)
            done += 1

    await asyncio.gather(*(work(worker) for worker in range(_PACED)))
    return 1000 * (target.server.cpu_seconds() - cpu) / done


async def measure(options: argparse.Namespace, targets: Sequence[Target]) -> dict[str, list[float]]:
    """The rounds; the paced figures by target."""
    paced: dict[str, list[float]] = {target.name: [] for target in targets}
    for number in range(options.rounds):
        log_progress(f"round {number + 1} of {options.rounds}")
        order = targets if number % 2 == 0 else targets[::-1]
        for target in order:
            await target.measure(_fast(options), number, options.seconds)
        for target in order:
            paced[target.name].append(await paced_cpu_ms(target, options.seconds))
            target.server.check_runs()
    return paced


def _fast(options: argparse.Namespace) -> Case:
    return Case("fast", options.parallel)


def summary(
    options: argparse.Namespace, targets: Sequence[Target], paced: dict[str, list[float]]
) -> dict[str, Any]:
    """All figures."""
    fast = _fast(options)
    base = next((target for target in targets if target.name == "off"), None)
    results: dict[str, Any] = {}
    for target in targets:
        result: dict[str, Any] = {
            "streams_per_second": _spread([run.rate for run in target.all(fast)]),
            "cpu_ms_per_stream": _spread([run.cpu_per_1000 for run in target.all(fast)]),
            "paced_cpu_ms_per_stream": _spread(paced[target.name]),
            "resident_mib": round(target.server.memory_mib()),
        }
        if base and target is not base:
            pairs = target.beside(base, fast)
            result["throughput_of_off"] = _spread([mine.rate / its.rate for mine, its in pairs])
            cpus = [mine.cpu_per_1000 / its.cpu_per_1000 for mine, its in pairs]
            result["cpu_of_off"] = _spread(cpus)
            paced_cpus = zip(paced[target.name], paced[base.name], strict=True)
            result["paced_cpu_of_off"] = _spread([mine / its for mine, its in paced_cpus])
        results[target.name] = result
    return results


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def show(results: dict[str, Any]) -> None:
    """The table, as it is in bench/README.md."""
    print(
        "| | streams/s, 16 in parallel | of off | CPU a stream | of off |"
        f" CPU a stream, {_PACED} paced | of off | resident |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        cells = [
            _range(result["streams_per_second"], 0),
            _bold(result.get("throughput_of_off")),
            f"{result['cpu_ms_per_stream']['median']:.2f} ms",
            _bold(result.get("cpu_of_off")),
            f"{result['paced_cpu_ms_per_stream']['median']:.2f} ms",
            _bold(result.get("paced_cpu_of_off")),
            f"{result['resident_mib']} MiB",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    if "throughput_of_off" in results.get("on", {}):
        cost = 100 * (1 - results["on"]["throughput_of_off"]["median"])
        print(f"\ntelemetry costs {cost:.1f} % of the throughput (aim: at most 10 %)")


def _bold(spread: dict[str, float] | None) -> str:
    return f"**{_range(spread, 2)}**" if spread else ""


def _range(spread: dict[str, float], digits: int) -> str:
    return (
        f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"
    )


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; its processes end with it, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        async with AsyncExitStack() as stack:
            targets, sink = await start(options, Path(folder), stack)
            paced = await measure(options, targets)
            results = summary(options, targets, paced)
        # Each has been ended by now, so the sink has told what it got.
        told = json.loads(sink.log.read_text().splitlines()[-1])
        if any(name != "off" for name in options.only) and not told["exports"]:
            raise servers.Failed("nothing was exported, so nothing was measured")
        return {"results": results, "exported": told}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round, off and on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="a case in a round")
    parser.add_argument("--parallel", type=int, default=16, help="streams at a time, unpaced")
    parser.add_argument("--tokens", type=int, default=32, help="a stream")
    parser.add_argument("--only", nargs="+", choices=_NAMES, default=_NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.only = 1, 1.0, ("off", "on")
    for name in list(os.environ):
        if name.startswith("OTEL_"):  # the caller's would change what is measured
            del os.environ[name]
    machine = describe()
    try:
        figures = uvloop.run(run(options))
    except (servers.Failed, StreamBroken) as failure:
        print(f"telemetry: {failure}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    print(machine)
    show(figures["results"])
    print(f"exported: {figures['exported']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
