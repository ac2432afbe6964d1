"""What ruvd costs between a client and an OpenAI-compatible server, beside other gateways.

A mock upstream (`bench/mock_upstream.py`) answers, each token a write of its own. These relay it,
each in a process of its own, all in one run and in turns, so that a busy machine is busy for all
alike:

mock         nothing between: the ceiling of the mock and of a client that parses no JSON
litellm      LiteLLM's proxy, one worker; the same client for this and the next three
smg          the Shepherd Model Gateway, chat completions, which it keeps nothing of
smg-history  the same process, by the Responses API: each answer is stored in its memory, and goes
             on with the one before it, ten at most
ferrogw      Ferro Labs' gateway
ferrogw-told the same process, told in each request the exchanges that ruvd's sessions send, so that
             the server gets the same by either
naive        thirty lines of grpc.aio and httpx (`bench/naive_relay.py`) that do nothing else
ruvd         `ruvd serve --engine openai` on a Unix socket, stateless completions
tcp          the same on a loopback port
sessions     on a Unix socket with a session for each stream in parallel, on sqlite: every answer is
             on disk before its stream ends, and each prompt has the exchanges before it

The cases: one stream after the other, the mock paced (20 ms to the first token, 1 ms a token), for
the time that is added to the first token; 1, 16, 32 and 256 streams in parallel, the mock not
paced; and a pod's: 64 streams that begin spread out, 50 ms to the first token, 10 ms a token, 64
tokens. Each gives streams a second, the time to the first token (p50, p99) less what it is without
a relay, CPU seconds per 1,000 streams and memory of the relay's processes. A round takes every
target in turn, every second one backwards. LiteLLM takes so long that it has the largest cases in
the first round only, and not at all with `--quick`. Each answer is checked to be whole.

The clients (this process) and the mock share the machine's cores with the relay. CPU says what a
relay would do with a core of its own.

Run it with `.venv/bin/python bench/relay.py`; it takes about five minutes, `--quick` about one, and
once two more to install LiteLLM (750 MB), smg (150 MB) and ferrogw (70 MB) in the user's cache
directory. What cannot be installed is left out, and said to be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench import environments
from bench import relay_servers as servers
from bench.machine import describe
from bench.mock_upstream import POD_MODEL, POD_TOKENS
from bench.relay_clients import (
    Client,
    GrpcClient,
    HistoryClient,
    HttpClient,
    ResponsesClient,
    closing,
)
from bench.relay_gateways import GATEWAYS
from bench.relay_report import TITLES, criteria, results, show
from bench.relay_targets import ALONE, CASES, POD, Case, Target, tell

# In the same process as another.
_SHARED = {"smg-history": "smg", "ferrogw-told": "ferrogw"}
_CLIENTS = {"smg-history": ResponsesClient, "ferrogw-told": HistoryClient}
_SLOW = ("litellm",)
_QUICK_CASES = ("alone", "16", "pod")
# For the largest case with sessions; all others have the default.
_MAX_SESSIONS = ("--max-sessions", "1000")


async def environment_of(
    options: argparse.Namespace, name: str, left_out: dict[str, str]
) -> Path | None:
    """A gateway's environment; None with a reason if it is not there and not to be made."""
    folder: Path = (options.environments / name).absolute()
    if name == "litellm" and options.litellm_env:
        folder = options.litellm_env.absolute()
    if options.installed_only and not environments.is_whole(name, folder):
        left_out[name] = "not installed"
        return None
    try:
        await environments.install(name, folder)
    except environments.NotInstalled as failure:
        left_out[name] = str(failure)
        return None
    return folder


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack, left_out: dict[str, str]
) -> list[Target]:
    """Start the servers that are asked for, all before the first is called, and warm them."""
    wanted = list(dict.fromkeys(_SHARED.get(name, name) for name in options.only))
    found = {
        name: await environment_of(options, name, left_out) for name in wanted if name in GATEWAYS
    }
    tell(f"starting {', '.join(options.only)}")
    mock, port = await stack.enter_async_context(
        servers.mock(
            folder, tokens=options.tokens, first_ms=options.first_ms, token_ms=options.token_ms
        )
    )
    await servers.until_answering(mock, port, "/v1/models")
    http = {"mock": (mock, port)}
    for name, environment in found.items():
        if environment is None:
            continue
        try:
            http[name] = await stack.enter_async_context(GATEWAYS[name](folder, environment, port))
        except (servers.Failed, OSError) as failure:
            left_out[name] = str(failure).splitlines()[0]
    targets = []
    for name in options.only:
        clients: tuple[Client, Client]
        if (process := _SHARED.get(name, name)) in http:
            server, its_port = http[process]
            kind = _CLIENTS.get(name, HttpClient)
            clients = (
                kind(its_port, options.tokens),
                kind(its_port, POD_TOKENS, paced_model=POD_MODEL),
            )
        elif process in GATEWAYS:
            tell(f"{TITLES[name]} is left out: {left_out[process]}")
            continue
        else:
            server, address = await start_grpc(options, name, folder, port, stack)
            kept = name == "sessions"
            clients = (
                GrpcClient(address, options.tokens, sessions=kept),
                GrpcClient(address, POD_TOKENS, sessions=kept, paced_model=POD_MODEL),
            )
        for client in clients:
            await stack.enter_async_context(closing(client))
        targets.append(Target(name, server, *clients))
    for target in targets:
        await target.warm()
    return targets


async def start_grpc(
    options: argparse.Namespace, name: str, folder: Path, port: int, stack: AsyncExitStack
) -> tuple[servers.Server, str]:
    """Start a relay that speaks ruvd's API; its process and address."""
    if name == "naive":
        server, address = await stack.enter_async_context(servers.naive(folder, port))
        await servers.until_serving(server, address, service=None)
        return server, address
    daemon = servers.ruvd(
        name,
        folder,
        port,
        store=f"sqlite:{folder / 'sessions.db'}" if name == "sessions" else "memory",
        listen=f"127.0.0.1:{servers.free_port()}" if name == "tcp" else "",
        flags=(*_MAX_SESSIONS, *options.ruvd_flag),
    )
    server, address = await stack.enter_async_context(daemon)
    await servers.until_serving(server, address, service="readiness")
    return server, address


async def measure(options: argparse.Namespace, targets: Sequence[Target]) -> None:
    """The rounds."""
    cases = [case for case in CASES if case.name in options.cases]
    for number in range(options.rounds):
        order = targets if number % 2 == 0 else targets[::-1]
        for case in cases:
            tell(f"round {number + 1} of {options.rounds}, case {case.name}")
            for target in order:
                large = is_large(case) and (number > 0 or options.quick)
                if not large or target.name not in _SLOW:
                    await target.try_to_measure(case, number, seconds_of(options, case))


def is_large(case: Case) -> bool:
    return case.parallel > POD.parallel or case is POD


def seconds_of(options: argparse.Namespace, case: Case) -> float:
    """One stream at a time needs more time for as good a p99."""
    seconds: float = options.seconds
    return 2 * seconds if case is ALONE else seconds


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; its processes end with it, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
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
            versions = {
                target.name: environments.version(target.name)
                for target in targets
                if target.name in GATEWAYS
            }
    return {
        **figures,
        "versions": versions,
        "left_out": left_out,
        "cases": results(targets),
        "criteria": criteria(targets),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of the main cases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a case in a round")
    parser.add_argument("--tokens", type=int, default=32, help="a stream, but for the pod's")
    parser.add_argument("--first-ms", type=float, default=20.0, help="to the first token, paced")
    parser.add_argument("--token-ms", type=float, default=1.0, help="between tokens, paced")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        default=environments.DEFAULT,
        help="where the gateways' environments are, each made if it is not there",
    )
    parser.add_argument(
        "--litellm-env", type=Path, metavar="DIR", help="LiteLLM's environment, if elsewhere"
    )
    parser.add_argument(
        "--installed-only", action="store_true", help="install nothing, leave out what is not there"
    )
    parser.add_argument(
        "--ruvd-flag", action="append", default=[], metavar="FLAG", help="one more of `ruvd serve`"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    options.cases = options.cases or [case.name for case in CASES]
    if options.quick:
        options.rounds, options.seconds, options.cases = 1, 0.5, _QUICK_CASES
    return options


def main() -> int:
    options = parse()
    try:
        figures = uvloop.run(run(options))
    except servers.Failed as failure:
        print(f"relay: {failure}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    print(figures["machine"])
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    broken = [name for case in figures["cases"].values() for name in case["targets"].items()]
    return int(any("failed" in row for name, row in broken if name not in GATEWAYS))


if __name__ == "__main__":
    sys.exit(main())
