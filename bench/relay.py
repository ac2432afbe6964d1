"""Measures the overhead of ruvd between a client and an OpenAI-compatible server.

Other gateways are measured beside it. The upstream is a mock (`bench/mock_upstream.py`) that writes
each token separately. Every target is a process of its own. All targets are measured in the same
run and alternately, so that other load on the machine affects all of them alike:

mock         no relay: the limit of the mock and of a client that parses no JSON
litellm      LiteLLM's proxy with one worker
smg          the Shepherd Model Gateway, chat completions API, of which it keeps no history
smg-history  the same process, Responses API: it keeps each answer in memory, and each request
             continues the answer before it, ten at most
agentic      vLLM's stateful gateway of the Responses API, which stores conversations in SQLite: the
             one that does most of what ruvd's sessions do. Each request continues the one before
vllm         vLLM's router, which passes requests on
nginx        a reverse proxy that passes bytes on: a physical bound
ferrogw      Ferro Labs' gateway
ferrogw-told the same process; the client sends the history with each request, as much of it as
             ruvd's sessions send, so that the upstream gets the same prompts from both
go           a small Go server of ruvd's API (`bench/go/server`) without ruvd's promises: what the
             protocol costs compiled
go-sessions  the same process with sessions, in memory
grpc         a grpc.aio server that answers from memory (`bench/bare_grpc.py`), without an upstream:
             what gRPC itself costs in Python
naive        thirty lines of grpc.aio and httpx (`bench/naive_relay.py`) that only relay
ruvd         `ruvd serve --engine openai` on a Unix socket, stateless completions
tcp          the same on a loopback port
sessions     on a Unix socket, with a session for each parallel stream, stored in sqlite: every
             answer is on disk before its stream ends, and each prompt contains the history

All HTTP targets are called by the same client code. ruvd and the Go server are also called by a
client in Go.

The cases are: one stream at a time, with a paced mock (20 ms to the first token, 1 ms per token),
for the time added to the first token; 1, 16, 32, 64 and 256 parallel streams, without pace, which
share one connection if they are gRPC's; 16, 64 and 256 clients of ruvd with a connection each; and
a pod's load: 64 parallel streams that start spread over time, 50 ms to the first token, 10 ms per
token, 64 tokens. Each case gives streams per second, the time to the first token (p50, p99) minus
that without a relay, CPU seconds per 1,000 streams and the memory of the relay's processes. A round
measures every target once; every second round has the reverse order. LiteLLM is so slow that it
runs the largest cases in the first round only, and never with `--quick`. Each answer is checked to
be complete.

The clients (this process) and the mock share the machine's cores with the relay. The CPU figures
show what a relay could do with a core of its own.

Run it with `.venv/bin/python -m bench.relay`. It takes about five minutes, with `--quick` about
one. The first run needs two more minutes to install LiteLLM (750 MB), smg (150 MB) and ferrogw (70
MB) in the user's cache directory. A gateway that cannot be installed is left out and reported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench import environments, go_programs, relay_go_client, runner
from bench.machine import describe
from bench.relay_clients import (
    GrpcClient,
)
from bench.relay_gateways import GATEWAYS, PACKAGES
from bench.relay_report import TITLES, criteria, results, show
from bench.relay_start import start
from bench.relay_targets import ALONE, CASES, POD, Case, Target
from bench.runner import log_progress

_SLOW = ("litellm",)
_GO_CLIENT = ("ruvd", "sessions", "go", "go-sessions")
_QUICK_CASES = ("alone", "16", "pod")


async def measure(options: argparse.Namespace, targets: Sequence[Target]) -> None:
    """Measures all cases on all targets, in rounds."""
    cases = [case for case in CASES if case.name in options.cases]
    for number in range(options.rounds):
        order = targets if number % 2 == 0 else targets[::-1]
        for case in cases:
            log_progress(f"round {number + 1} of {options.rounds}, case {case.name}")
            for target in order:
                if case.clients and not isinstance(target.client, GrpcClient):
                    continue  # its streams have a connection each in all cases
                large = is_large(case) and (number > 0 or options.quick)
                if not large or target.name not in _SLOW:
                    await target.try_to_measure(case, number, seconds_of(options, case))


def is_large(case: Case) -> bool:
    """Returns whether slow targets run the case only once."""
    return case.parallel > POD.parallel or case is POD


def seconds_of(options: argparse.Namespace, case: Case) -> float:
    """Returns a case's duration; one stream at a time needs longer for a p99 as good."""
    seconds: float = options.seconds
    return 2 * seconds if case is ALONE else seconds


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    figures: dict[str, Any] = {
        "machine": describe(),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "paced_ms": {"first": options.first_ms, "token": options.token_ms},
    }
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        async with AsyncExitStack() as stack:
            targets = await start(options, Path(folder), stack, left_out)
            await measure(options, targets)
            go_client = await measure_go_client(options, targets, left_out)
            versions = {
                target.name: environments.version(target.name, PACKAGES[target.name])
                for target in targets
                if target.name in PACKAGES
            }
    return {
        **figures,
        "go_client": go_client,
        "versions": versions,
        "left_out": left_out,
        "cases": results(targets),
        "criteria": criteria(targets),
    }


async def measure_go_client(
    options: argparse.Namespace, targets: Sequence[Target], left_out: dict[str, str]
) -> dict[str, Any]:
    """Measures the servers of ruvd's API with a client in Go, if it can be built."""
    addresses = {
        target.name: (target.server, target.client.address)
        for target in targets
        if isinstance(target.client, GrpcClient) and target.name in _GO_CLIENT
    }
    if not addresses or options.quick:
        return {}
    try:
        folder = await go_programs.build()
    except environments.NotInstalled as failure:
        left_out["go-client"] = str(failure)
        return {}
    return await relay_go_client.measure(
        folder / "client", addresses, options.rounds, options.seconds
    )


def parse() -> argparse.Namespace:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of the main cases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="duration of a case in a round")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per stream (pod: always 64)")
    parser.add_argument("--first-ms", type=float, default=20.0, help="time to first token, paced")
    parser.add_argument("--token-ms", type=float, default=1.0, help="time between tokens, paced")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        default=environments.DEFAULT,
        help="folder of the gateways' environments; missing ones are made (default: %(default)s)",
    )
    parser.add_argument(
        "--litellm-env", type=Path, metavar="DIR", help="LiteLLM's environment, if it is elsewhere"
    )
    parser.add_argument(
        "--installed-only", action="store_true", help="install nothing; leave out missing gateways"
    )
    runner.add_ruvd_flag(parser)
    options = parser.parse_args()
    options.cases = options.cases or [case.name for case in CASES]
    if options.quick:
        options.rounds, options.seconds, options.cases = 1, 0.5, _QUICK_CASES
    return options


def main() -> int:
    options = parse()
    figures = runner.run("relay", run(options), runner=uvloop.run)
    print(figures["machine"])
    show(figures)
    relay_go_client.show(figures["go_client"], TITLES)
    runner.write_json(options.json, figures)
    rows = [row for case in figures["cases"].values() for row in case["targets"].items()]
    return int(any("failed" in row for name, row in rows if name not in GATEWAYS))


if __name__ == "__main__":
    sys.exit(main())
