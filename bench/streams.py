"""Whether cancelled streams leave memory behind, in a real daemon process.

Opens streams on the echo engine, 50 at a time, reads each to its first event and cancels it; half
of them are in one of 40 sessions, half stateless. Prints the daemon's resident memory at every
2,000 streams, how many completions still run at the end, how long it took, and the slope over the
second half. The events of completions that have ended are kept on purpose, up to --max-logs-bytes
(16 MiB by default): the memory rises until that is full, and must then be level.

Run it with `.venv/bin/python bench/streams.py`; it takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.machine import describe
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_MEBIBYTE = 1 << 20
_SESSIONS = 40
_TEXT = " ".join(f"word{index}" for index in range(200))


@asynccontextmanager
async def daemon(address: str, *flags: str) -> AsyncIterator[int]:
    """A daemon on the echo engine; its process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ruvd", "serve", "--engine", "echo", "--echo-delay-seconds", "0.02",
        "--store", "memory", "--log-level", "error", "--listen", address, *flags,
    )  # fmt: skip
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="readiness")
            await health.Check(request, wait_for_ready=True, timeout=30)
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


async def cut(stub: Any, number: int) -> None:
    """A stream that is cancelled after its first event."""
    session_id = f"s{number // 2 % _SESSIONS}" if number % 2 else ""
    message = pb.Message(role=pb.ROLE_USER, content=_TEXT)
    call = stub.Complete(pb.CompleteRequest(session_id=session_id, messages=[message]))
    await anext(aiter(call))
    call.cancel()


async def measure(options: argparse.Namespace, address: str) -> dict[str, Any]:
    """All figures, which are printed as they come."""
    flags = ("--max-logs-bytes", str(options.max_logs_bytes))
    async with daemon(address, *flags) as pid, grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.SessionServiceStub(channel)
        process = psutil.Process(pid)
        numbers = iter(range(options.streams))
        points = [(0, process.memory_info().rss / _MEBIBYTE)]
        ended = 0
        print(f"{0:7} streams {points[0][1]:7.1f} MiB")
        began = time.perf_counter()

        async def worker() -> None:
            nonlocal ended
            for number in numbers:
                await cut(stub, number)
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
        f" {running} of {_SESSIONS} sessions still in use"
    )
    print(f"slope over the second half: {slope * 1024:+.1f} KiB per 1,000 streams")
    return {"seconds": took, "resident_mib": points, "in_use": running, "slope_mib": slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams")
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--every", type=int, default=2_000)
    parser.add_argument("--max-logs-bytes", type=int, default=16 << 20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.every, options.max_logs_bytes = 2_000, 200, 1 << 20
    machine = describe()
    print(machine)
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
        figures = asyncio.run(measure(options, f"unix:{folder}/r.sock"))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
