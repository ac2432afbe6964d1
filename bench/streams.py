"""Measures whether cancelled streams leak memory in a daemon process.

It opens streams on the echo engine, 50 at a time, reads the first event of each and cancels it.
Half of them belong to one of 40 sessions, the others are stateless. It prints the daemon's resident
memory after every 2,000 streams, the total time, the number of sessions that still have a running
completion at the end, and the slope of the memory over the second half. The daemon keeps the events
of ended completions on purpose, up to --max-logs-bytes (16 MiB by default), so the memory rises
until that limit is reached, and must not rise afterwards.

Run it with `.venv/bin/python -m bench.streams`; it takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_MEBIBYTE = 1 << 20
_SESSIONS = 40
_TEXT = " ".join(f"word{index}" for index in range(200))


async def cancelled_stream(stub: Any, number: int) -> None:
    """Opens a stream and cancels it after its first event."""
    session_id = f"s{number // 2 % _SESSIONS}" if number % 2 else ""
    message = pb.Message(role=pb.ROLE_USER, content=_TEXT)
    call = stub.Complete(pb.CompleteRequest(session_id=session_id, messages=[message]))
    await anext(aiter(call))
    call.cancel()


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the benchmark, prints the figures as they come and returns them."""
    flags = (
        "--engine", "echo", "--echo-delay-seconds", "0.02", "--store", "memory",
        "--log-level", "error", "--max-logs-bytes", str(options.max_logs_bytes),
    )  # fmt: skip
    async with (
        servers.daemon("ruvd", folder, *flags) as (server, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        await servers.until_serving(server, address, service="readiness")
        stub = pb_grpc.SessionServiceStub(channel)
        process = psutil.Process(server.process.pid)
        numbers = iter(range(options.streams))
        points = [(0, process.memory_info().rss / _MEBIBYTE)]
        ended = 0
        print(f"{0:7} streams {points[0][1]:7.1f} MiB")
        began = time.perf_counter()

        async def worker() -> None:
            nonlocal ended
            for number in numbers:
                await cancelled_stream(stub, number)
                ended += 1
                if ended % options.every == 0:
                    points.append((ended, process.memory_info().rss / _MEBIBYTE))
                    print(f"{ended:7} streams {points[-1][1]:7.1f} MiB", flush=True)

        await asyncio.gather(*(worker() for _ in range(options.concurrency)))
        took = time.perf_counter() - began
        running = 0
        for number in range(_SESSIONS):
            request = pb.GetSessionRequest(session_id=f"s{number}")
            try:
                session = (await stub.GetSession(request)).session
                running += bool(session.running_completion_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
    late = [point for point in points if point[0] >= options.streams / 2]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 1000
    print(
        f"{options.streams} cancelled streams in {took:.1f} s ({options.streams / took:.0f}/s);"
        f" {running} of {_SESSIONS} sessions still have a running completion"
    )
    print(f"slope over the second half: {slope * 1024:+.1f} KiB per 1,000 streams")
    return {"seconds": took, "resident_mib": points, "in_use": running, "slope_mib": slope}


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams")
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--every", type=int, default=2_000, help="streams between two readings")
    parser.add_argument("--max-logs-bytes", type=int, default=16 << 20)
    options = parser.parse_args()
    if options.quick:
        options.streams, options.every, options.max_logs_bytes = 2_000, 200, 1 << 20
    machine = describe()
    print(machine)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = runner.run("streams", measure(options, Path(folder)))
    runner.write_json(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
