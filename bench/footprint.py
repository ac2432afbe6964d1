"""Measures the memory of the daemon with the embedded engine, which a pod has to request.

It starts a daemon with its defaults (SmolLM2-135M-Instruct, 4 slots of 4,096 tokens, sqlite) and
runs six turns in each of four parallel sessions, with messages that fill their slots. It prints the
time until the daemon was ready, and the resident memory of the daemon and of its engine, which is a
child process, before and after the turns. Run it with `.venv/bin/python -m bench.footprint`; it
takes a minute or two.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ruvd_client import AsyncClient

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe

_SESSIONS, _TURNS, _WORDS = 4, 6, 300


def resident(server: servers.Server) -> dict[str, float]:
    """Returns the resident memory of both processes in MiB."""
    daemon = psutil.Process(server.process.pid)
    own = daemon.memory_info().rss / (1 << 20)
    together = server.memory_mib()
    return {"daemon": own, "engine": together - own, "together": together}


def formatted(mib: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in mib.items())


async def converse(client: AsyncClient, number: int, turns: int) -> None:
    """Runs the turns of one session."""
    for turn in range(turns):
        words = " ".join(f"word{(number * 31 + turn * 17 + at) % 997}" for at in range(_WORDS))
        await client.complete(f"{words}\nGo on.", session_id=f"s{number}", max_tokens=32).text()


async def measure(sessions: int, turns: int) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        folder = Path(name)
        began = time.monotonic()
        async with servers.embedded("embedded", folder) as (server, address):
            await servers.until_serving(server, address, service="readiness")
            ready = time.monotonic() - began
            before = resident(server)
            print(f"ready after {ready:.1f} s: {formatted(before)}")
            async with AsyncClient(address) as client:
                await asyncio.gather(
                    *(converse(client, number, turns) for number in range(sessions))
                )
            after = resident(server)
            print(f"after {sessions * turns} turns in {sessions} sessions: {formatted(after)}")
    return {
        "ready_seconds": ready,
        "sessions": sessions,
        "turns": turns,
        "resident_mib": {"ready": before, "after": after},
    }


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn in one session")
    options = parser.parse_args()
    machine = describe()
    print(machine)
    sessions, turns = (1, 1) if options.quick else (_SESSIONS, _TURNS)
    figures = runner.run("footprint", measure(sessions, turns))
    runner.write_json(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
