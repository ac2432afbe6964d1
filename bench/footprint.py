"""What the daemon with the embedded engine holds in memory: what a pod has to request.

A daemon with its defaults (SmolLM2-135M-Instruct, 4 slots of 4,096 tokens, sqlite) is started, and
four sessions hold six turns each, side by side, with questions that fill their slots. Printed are
the time until it was ready, and what daemon and engine (its child) hold, resident: when it was up,
and after the turns. Run it with `.venv/bin/python bench/footprint.py`; it takes a minute or two.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil
from ruvd_client import AsyncClient

from bench import relay_servers as servers
from bench.machine import describe

_SESSIONS, _TURNS, _WORDS = 4, 6, 300


def resident(server: servers.Server) -> str:
    """Both processes, as they are now."""
    daemon = psutil.Process(server.process.pid)
    own = daemon.memory_info().rss / (1 << 20)
    children = sum(each.memory_info().rss for each in daemon.children(recursive=True)) / (1 << 20)
    return f"daemon {own:.0f} MiB, engine {children:.0f} MiB, together {own + children:.0f} MiB"


async def converse(client: AsyncClient, number: int) -> None:
    """One session's turns."""
    for turn in range(_TURNS):
        words = " ".join(f"word{(number * 31 + turn * 17 + at) % 997}" for at in range(_WORDS))
        await client.complete(f"{words}\nGo on.", session_id=f"s{number}", max_tokens=32).text()


async def measure() -> None:
    """The whole benchmark; its processes end with it."""
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        folder = Path(name)
        began = time.monotonic()
        async with servers.embedded("embedded", folder) as (server, address):
            await servers.until_serving(server, address, service="readiness")
            print(f"ready after {time.monotonic() - began:.1f} s: {resident(server)}")
            async with AsyncClient(address) as client:
                await asyncio.gather(*(converse(client, number) for number in range(_SESSIONS)))
            print(f"after {_SESSIONS * _TURNS} turns in {_SESSIONS} sessions: {resident(server)}")


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(describe())
    try:
        asyncio.run(measure())
    except servers.Failed as failure:
        print(f"footprint: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
