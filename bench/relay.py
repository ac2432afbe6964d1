"""What ruvd costs between a client and an OpenAI-compatible server, beside LiteLLM's proxy.

A mock upstream (`bench/mock_upstream.py`) answers with 32 tokens, each a write of its own. These
relay it, each in a process of its own, all in one run and in turns, so that a busy machine is busy
for all alike:

mock       nothing between: the ceiling of the mock and of a client that parses no JSON
litellm    LiteLLM's proxy, one worker, in an environment that this script makes; the same client
naive      thirty lines of grpc.aio and httpx (`bench/naive_relay.py`) that do nothing else
ruvd       `ruvd serve --engine openai` on a Unix socket, stateless completions
sessions   the same with a session for each stream in parallel, on sqlite: every answer is on disk
           before its stream ends, and each prompt has the exchanges before it

Two figures are taken. Streams a second with 16 in parallel, the mock not paced; and at one stream,
the mock paced (20 ms to the first token, 1 ms a token), the time from the call to the first token
less what it is without a relay. Each is the median over the rounds, with its spread. The clients
are a process of their own (this one), but they and the mock share the machine's cores with the
relay; the gRPC client needs more of them than the HTTP client, which is to ruvd's disadvantage.
`CPU` is what the relay's own process used for a stream, and says what it would do with a core of
its own. Each answer is checked to be whole.

Run it with `.venv/bin/python bench/relay.py`; it takes about two minutes, and once two more to
install LiteLLM (750 MB), which `--litellm-env DIR` keeps for the next time. The aims: at 16 in
parallel at least 20 times LiteLLM's streams, at one stream at most a sixth of its added time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench import relay_servers as servers
from bench.machine import describe
from bench.relay_clients import Client, GrpcClient, HttpClient, Stream, StreamBroken, closing

_NAMES = ("mock", "litellm", "naive", "ruvd", "sessions")
_RELAYS = {
    "mock": "no relay",
    "litellm": "LiteLLM",
    "naive": "naive grpc.aio",
    "ruvd": "ruvd",
    "sessions": "ruvd, sessions",
}
_WARM_STREAMS = 16


@dataclass
class Target:
    """What is measured, and its figures: one a round."""

    name: str
    server: servers.Server
    client: Client
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    messages: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    streams: int = 0

    async def warm(self) -> None:
        """Open the connections, import what is imported late."""
        await parallel(self.client, _WARM_STREAMS, streams=2 * _WARM_STREAMS)

    async def measure_rate(self, workers: int, seconds: float) -> None:
        """A round with so many streams in parallel."""
        self.client.new_round()
        cpu = self.server.cpu_seconds()
        began = time.perf_counter()
        done = await parallel(self.client, workers, until=began + seconds)
        took = time.perf_counter() - began
        self.rates.append(len(done) / took)
        self.cpu_ms.append(1000 * (self.server.cpu_seconds() - cpu) / len(done))
        self.messages.append(statistics.mean(stream.messages for stream in done))
        self.streams += len(done)

    async def measure_first(self, streams: int) -> None:
        """A round of one stream after the other, paced."""
        self.client.new_round()
        done = [await self.client.stream(0, paced=True) for _ in range(streams)]
        self.first_ms.append(1000 * statistics.median(stream.first_seconds for stream in done))
        self.streams += len(done)


async def parallel(
    client: Client, workers: int, *, until: float = 0.0, streams: int | None = None
) -> list[Stream]:
    """Unpaced streams, so many at a time, until a time or for a number of them."""
    numbers = itertools.count() if streams is None else iter(range(streams))
    done: list[Stream] = []

    async def work(worker: int) -> None:
        for _ in numbers:
            done.append(await client.stream(worker, paced=False))
            if streams is None and time.perf_counter() >= until:
                return

    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return done


async def start(options: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> list[Target]:
    """Start the servers that are asked for, all before the first is called, and warm them."""
    environment = options.litellm_env or folder / "litellm"
    if "litellm" in options.only:
        await servers.install_litellm(environment.absolute())
    tell(f"starting {', '.join(options.only)}")
    tokens = options.tokens
    mock, port = await stack.enter_async_context(
        servers.mock(folder, tokens=tokens, first_ms=options.first_ms, token_ms=options.token_ms)
    )
    http, rpc = {"mock": (mock, port)}, {}
    for name in options.only:
        if name == "litellm":
            proxy = servers.litellm(folder, environment.absolute(), port)
            http[name] = await stack.enter_async_context(proxy)
        elif name == "naive":
            rpc[name] = await stack.enter_async_context(servers.naive(folder, port))
        elif name != "mock":
            store = "memory" if name == "ruvd" else f"sqlite:{folder / 'sessions.db'}"
            daemon = servers.ruvd(name, folder, port, store=store, flags=options.ruvd_flag)
            rpc[name] = await stack.enter_async_context(daemon)
    targets = []
    for name in options.only:
        client: Client
        if name in http:
            server, its_port = http[name]
            path = "/health/liveliness" if name == "litellm" else "/v1/models"
            await servers.until_answering(server, its_port, path)
            client = HttpClient(its_port, tokens)
        else:
            server, address = rpc[name]
            service = None if name == "naive" else "readiness"
            await servers.until_serving(server, address, service=service)
            client = GrpcClient(address, tokens, sessions=name == "sessions")
        targets.append(Target(name, server, await stack.enter_async_context(closing(client))))
    for target in targets:
        await target.warm()
    return targets


async def measure(options: argparse.Namespace, targets: Sequence[Target]) -> None:
    """The rounds; every second one goes backwards through the targets."""
    for number in range(options.rounds):
        tell(f"round {number + 1} of {options.rounds}")
        order = targets if number % 2 == 0 else targets[::-1]
        for target in order:
            await target.measure_rate(options.parallel, options.seconds)
        for target in order:
            await target.measure_first(options.streams)
            target.server.check_runs()


def summary(options: argparse.Namespace, machine: str, targets: Sequence[Target]) -> dict[str, Any]:
    """All figures, as they are printed and written as JSON."""
    by_name = {target.name: target for target in targets}
    base = by_name.get("mock")
    results: dict[str, Any] = {}
    for target in targets:
        result: dict[str, Any] = {
            "streams_per_second": _spread(target.rates),
            "cpu_ms_per_stream": _spread(target.cpu_ms),
            "text_messages_per_stream": round(statistics.median(target.messages), 1),
            "first_token_ms": _spread(target.first_ms),
            "resident_mib": round(target.server.memory_mib()),
            "streams": target.streams,
        }
        if base and target is not base:
            added = [mine - its for mine, its in zip(target.first_ms, base.first_ms, strict=True)]
            result["added_first_token_ms"] = _spread(added)
        results[target.name] = result
    lite = results.get("litellm")
    for name in ("naive", "ruvd", "sessions") if lite else ():
        if name not in results:
            continue
        mine = by_name[name].rates, by_name["litellm"].rates
        results[name]["times_litellm"] = _spread([a / b for a, b in zip(*mine, strict=True)])
        if base:
            rounds = zip(
                by_name[name].first_ms, by_name["litellm"].first_ms, base.first_ms, strict=True
            )
            shares = [(mine - none) / (its - none) for mine, its, none in rounds]
            results[name]["added_of_litellm"] = _spread(shares)
    return {
        "machine": machine,
        "litellm": servers.litellm_version(),
        "tokens": options.tokens,
        "parallel": options.parallel,
        "rounds": options.rounds,
        "paced_ms": {"first": options.first_ms, "token": options.token_ms},
        "results": results,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def show(figures: dict[str, Any]) -> None:
    """The table, as it is in bench/README.md."""
    results = figures["results"]
    first, pace = figures["paced_ms"]["first"], figures["paced_ms"]["token"]
    print(
        f"{figures['tokens']} tokens a stream, {figures['rounds']} rounds: median (least to most);"
        f" LiteLLM {figures['litellm']}"
    )
    print()
    print(
        f"| | streams/s, {figures['parallel']} in parallel | of LiteLLM's | CPU a stream |"
        " messages a stream | added to first token, one stream"
        f" ({first:g} ms + {pace:g} ms a token) | of LiteLLM's | resident |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        times, share = result.get("times_litellm"), result.get("added_of_litellm")
        added = result.get("added_first_token_ms")
        latency = (
            f"{_range(added, 2)} ms"
            if added
            else f"(itself {_range(result['first_token_ms'], 2)} ms)"
        )
        print(
            f"| {_RELAYS[name]} | {_range(result['streams_per_second'], 0)}"
            f" | {f'**{_range(times, 1)}**' if times else ''}"
            f" | {result['cpu_ms_per_stream']['median']:.2f} ms"
            f" | {result['text_messages_per_stream']:.0f}"
            f" | {latency}"
            f" | {f'**{_range(share, 3)}**' if share else ''}"
            f" | {result['resident_mib']} MiB |"
        )
    print()
    for name in ("ruvd", "sessions"):
        if "added_of_litellm" not in results.get(name, {}):
            continue
        times = results[name]["times_litellm"]["median"]
        share = results[name]["added_of_litellm"]["median"]
        print(
            f"{_RELAYS[name]}: {times:.1f} times LiteLLM's streams (aim: at least 20),"
            f" {share:.3f} of its added time to first token (aim: at most {1 / 6:.3f})"
        )


def _range(spread: dict[str, float], digits: int) -> str:
    return (
        f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"
    )


def tell(what: str) -> None:
    """Progress; standard output is for the figures."""
    print(f"... {what}", file=sys.stderr, flush=True)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; its processes end with it, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        async with AsyncExitStack() as stack:
            targets = await start(options, Path(folder), stack)
            await measure(options, targets)
            return summary(options, machine, targets)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of streams in parallel, a round"
    )
    parser.add_argument("--parallel", type=int, default=16, help="streams at a time")
    parser.add_argument("--streams", type=int, default=20, help="one by one, a round")
    parser.add_argument("--tokens", type=int, default=32, help="a stream")
    parser.add_argument("--first-ms", type=float, default=20.0, help="to the first token, paced")
    parser.add_argument("--token-ms", type=float, default=1.0, help="between tokens, paced")
    parser.add_argument(
        "--only", nargs="+", choices=_NAMES, default=_NAMES, help="measure only these"
    )
    parser.add_argument(
        "--litellm-env",
        type=Path,
        metavar="DIR",
        help="LiteLLM's environment, made if it is not there; without it a temporary one",
    )
    parser.add_argument(
        "--ruvd-flag", action="append", default=[], metavar="FLAG", help="one more of `ruvd serve`"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    options = parser.parse_args()
    try:
        figures = uvloop.run(run(options))
    except (servers.Failed, StreamBroken) as failure:
        print(f"relay: {failure}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(figures["machine"])
        show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
