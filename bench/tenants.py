"""Measures what a tenant at 50 times its quota costs the others.

A daemon process serves two tenants with tokens, on the mock upstream: 50 ms to the first token and
5 ms to each of 15 others. The callers of one tenant take turns in sessions of their own, one after
the other. The callers of the other are 50 times as many as its `max_inflight`, in a process of
their own, and repeat each refused call at once. The time to the first token of the first tenant's
turns is measured without the flood and with it, alternately, in each of three cases:

- `remote`: an engine without a limit on parallel calls;
- `slots`: an engine with as many slots as both tenants may use at a time;
- `large`: as `remote`, with refused requests of 256 KiB.

The aim is a p99 with the flood of at most 1.3 times the p99 without it. Both are medians over the
rounds, because one stall of a shared machine is in the p99 of its round. The flood's own answers,
as many as its quota allows, are part of the flood.

Run it with `.venv/bin/python -m bench.tenants`; it takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench import relay_servers as servers
from bench import runner
from bench.mock_upstream import PACED_MODEL
from bench.relay_servers import Failed
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_TIMES = 50
_ROUND_SECONDS = 60.0  # of a round beside its phases, at most
_AIM = 1.3
_LARGE_BYTES = 256 << 10
_SETTLE_SECONDS = 2.0
_TEXT = "Tell me in a few words what a sidecar is."
_CASES = ("remote", "slots", "large")


@dataclass
class Phase:
    """The times to the first token in one phase of a case, in seconds, by round."""

    rounds: list[list[float]] = field(default_factory=list)

    def percentile(self, share: int) -> float:
        """Returns the median over the rounds of a percentile of each."""
        return statistics.median(
            statistics.quantiles(each, n=100, method="inclusive")[share - 1] for each in self.rounds
        )


def turn(text: str, session_id: str = "") -> pb.CompleteRequest:
    message = pb.Message(role=pb.ROLE_USER, content=text)
    return pb.CompleteRequest(session_id=session_id, messages=[message])


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def measure(address: str, token: str, callers: int, seconds: float) -> list[float]:
    """Returns the times to the first token of the turns that callers take in so many seconds."""
    end = time.perf_counter() + seconds
    first: list[float] = []

    async def caller(number: int) -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            seen = False
            call = stub.Complete(turn(_TEXT, f"s{number}"), metadata=bearer(token))
            async for response in call:
                if not seen and response.event.HasField("delta"):
                    first.append(time.perf_counter() - began)
                    seen = True

    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.SessionServiceStub(channel)
        await asyncio.gather(*(caller(number) for number in range(callers)))
    return first


async def flood(address: str, token: str, callers: int, size: int) -> None:
    """Calls as fast as it can, until standard input ends; then prints how its calls ended."""
    ends = {"answered": 0, "refused": 0}
    text = _TEXT.ljust(size, ".")

    async def caller() -> None:
        while True:
            try:
                async for _ in stub.Complete(turn(text), metadata=bearer(token)):
                    pass
                ends["answered"] += 1
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                ends["refused"] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.SessionServiceStub(channel)
        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.wait(tasks)
    print(json.dumps(ends), flush=True)


@asynccontextmanager
async def flooding(
    folder: Path, options: argparse.Namespace, address: str, token: str, size: int
) -> AsyncIterator[dict[str, int]]:
    """Runs the flood while the block lasts; afterwards the dict says how its calls ended."""
    command = (
        sys.executable, "-m", "bench.tenants", "--flood", address, "--flood-token", token,
        "--flood-callers", str(_TIMES * options.quota), "--flood-bytes", str(size),
    )  # fmt: skip
    ends: dict[str, int] = {}
    running = servers.running("flood", folder, *command, stdin=b"\n", pipe_output=True)
    async with running as server:
        await asyncio.sleep(_SETTLE_SECONDS)  # the calls at the start have no sessions to continue
        server.check_runs()
        yield ends
        process = server.process
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        if not line:
            await process.wait()
            server.check_runs()
        ends.update(json.loads(line))


async def run_case(
    name: str, options: argparse.Namespace, folder: Path, mock_port: int
) -> dict[str, Any]:
    """Runs one case, prints its row and returns its figures."""
    made = {each: tokens.create(each, Role.USER) for each in ("flood", "other")}
    file = folder / f"{name}.tokens"
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    flags: Sequence[str] = (
        "--engine", "openai", "--base-url", f"http://127.0.0.1:{mock_port}/v1",
        "--model", PACED_MODEL, "--store", f"sqlite:{folder / name}.db", "--log-level", "error",
        "--tokens-file", str(file), "--tenant-limits", f"flood;max_inflight={options.quota}",
        *options.ruvd_flag,
    )  # fmt: skip
    if name == "slots":
        flags = (*flags, "--max-parallel", str(options.quota + options.callers))
    size = _LARGE_BYTES if name == "large" else 0
    phases = {"idle": Phase(), "flood": Phase()}
    answered = refused = 0
    cpu_seconds = 0.0
    async with servers.daemon(name, folder, *flags) as (server, address):
        await servers.until_serving(server, address, service="readiness")
        flood_token, other_token = (made[each][0] for each in ("flood", "other"))
        await measure(address, other_token, options.callers, 1.0)  # creates the sessions
        for number in range(options.rounds):
            runner.log_progress(f"{name}: round {number + 1} of {options.rounds}")
            times = await measure(address, other_token, options.callers, options.seconds)
            phases["idle"].rounds.append(times)
            async with flooding(folder, options, address, flood_token, size) as ends:
                before = server.cpu_seconds()
                times = await measure(address, other_token, options.callers, options.seconds)
                cpu_seconds += server.cpu_seconds() - before
                phases["flood"].rounds.append(times)
            answered += ends["answered"]
            refused += ends["refused"]
            server.check_runs()
    if not refused:
        raise Failed("the flood was never refused")
    ratio = phases["flood"].percentile(99) / phases["idle"].percentile(99)
    cells = [
        f"{1000 * phases[phase].percentile(share):.1f}"
        for share in (50, 99)
        for phase in ("idle", "flood")
    ]
    cpu = cpu_seconds / (options.rounds * options.seconds)
    print(
        f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {refused} | {100 * cpu:.0f} % |",
        flush=True,
    )
    return {
        "ratio": ratio,
        "aim": _AIM,
        "answered": answered,
        "refused": refused,
        "cpu_share": cpu,
        **{f"{phase}_seconds": each.rounds for phase, each in phases.items()},
    }


async def run_all(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the cases and returns their figures by name."""
    print(
        f"{options.callers} callers of one tenant, {_TIMES * options.quota} of a tenant that may "
        f"have {options.quota} completions.\nTime to the first token in ms.\n\n"
        "| case | p50 idle | p50 flood | p99 idle | p99 flood | ratio of p99 | refused | CPU |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    figures = {}
    async with servers.mock(folder, tokens=16, first_ms=50, token_ms=5) as (_, port):
        for name in options.only:
            async with runner.case_timeout(
                options.rounds * (2 * options.seconds + _ROUND_SECONDS) + _ROUND_SECONDS
            ):
                figures[name] = await run_case(name, options, folder, port)
    missed = [name for name, each in figures.items() if each["ratio"] > _AIM]
    print(f"\nThe aim is {_AIM}: {'missed by ' + ', '.join(missed) if missed else 'met'}.")
    return figures


def main() -> None:
    parser = runner.argument_parser(__doc__)
    runner.add_ruvd_flag(parser)
    parser.add_argument("--quick", action="store_true", help="one short round of each case")
    parser.add_argument("--only", nargs="+", choices=_CASES, default=_CASES, help="the cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a phase of a round")
    parser.add_argument("--callers", type=int, default=4, help="callers of the measured tenant")
    parser.add_argument("--quota", type=int, default=4, help="max_inflight of the other tenant")
    for name, kind in (("", str), ("-token", str), ("-callers", int), ("-bytes", int)):
        parser.add_argument(f"--flood{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        arguments = (options.flood_token, options.flood_callers, options.flood_bytes)
        asyncio.run(flood(options.flood, *arguments))
        return
    if options.quick:
        options.rounds, options.seconds = 1, 3.0
    origin = runner.origin("tenants")
    print(origin["machine"])
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = runner.run("tenants", run_all(options, Path(folder)))
    runner.write_json(options.json, {**origin, "cases": figures})


if __name__ == "__main__":
    main()
