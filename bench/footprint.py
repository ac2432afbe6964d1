"""What the daemon with the embedded engine holds in memory: what a pod has to request.

A daemon with its defaults (SmolLM2-135M-Instruct, 4 slots of 4,096 tokens, sqlite) is started, and
four sessions hold six turns each, side by side, with questions that fill their slots. Printed are
the time until it was ready, and what daemon and engine (its child) hold, resident: when it was up,
and after the turns. Run it with `.venv/bin/python bench/footprint.py`; it takes a minute or two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ruvd_client import AsyncClient

from bench import relay_servers as servers
from bench.machine import describe

_SESSIONS, _TURNS, _WORDS = 4, 6, 300


def resident(server: servers.Server) -> dict[str, float]:
    """Both processes, in MiB, as they are now."""
    daemon = psutil.Process(server.process.pid)
    own = daemon.memory_info().rss / (1 << 20)
    children = sum(each.memory_info().rss for each in daemon.children(recursive=True)) / (1 << 20)
    return {"daemon": own, "engine": children, "together": own + children}


def told(mib: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in mib.items())


async def converse(client: AsyncClient, number: int, turns: int) -> None:
    """One session's turns."""
    for turn in range(turns):
        words = " ".join(f"word{(number * 31 + turn * 17 + at) % 997}" for at in range(_WORDS))
        await client.complete(f"{words}\nGo on.", session_id=f"s{number}", max_tokens=32).text()


async def measure(sessions: int, turns: int) -> dict[str, Any]:
    """The whole benchmark; its processes end with it."""
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        folder = Path(name)
        began = time.monotonic()
        async with servers.embedded("embedded", folder) as (server, address):
            await servers.until_serving(server, address, service="readiness")
            ready = time.monotonic() - began
            up = resident(server)
            print(f"ready after {ready:.1f} s: {told(up)}")
            async with AsyncClient(address) as client:
                await asyncio.gather(
                    *(converse(client, number, turns) for number in range(sessions))
                )
            after = resident(server)
            print(f"after {sessions * turns} turns in {sessions} sessions: {told(after)}")
    return {
        "ready_seconds": ready,
        "sessions": sessions,
        "turns": turns,
        "resident_mib": {"ready": up, "after": after},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn in one session")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    machine = describe()
    print(machine)
    try:
        figures = asyncio.run(measure(*((1, 1) if options.quick else (_SESSIONS, _TURNS))))
    except servers.Failed as failure:
        print(f"footprint: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
