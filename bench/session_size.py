"""Measures the disk and the memory that stored sessions take.

A daemon with the echo engine holds conversations of a number of turns, each a message of 50 words
and its echo, and is stopped. The size of the SQLite file, divided by the sessions, is printed, and
the daemon's resident memory before and after. Run it with `.venv/bin/python -m bench.session_size`;
it takes half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from ruvd_client import AsyncClient

from bench.machine import describe

_WORDS = 50
_AT_ONCE = 16
_SECONDS = 60.0


def message(session: int, exchange: int) -> str:
    """Returns a message, another one for each turn."""
    return " ".join(f"word{(session * 31 + exchange * 17 + n * 7) % 9973}" for n in range(_WORDS))


async def fill(address: str, sessions: int, exchanges: int) -> None:
    """Holds the conversations, a few at a time."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def converse(client: AsyncClient, number: int) -> None:
        async with room:
            for exchange in range(exchanges):
                text = message(number, exchange)
                await client.complete(text, session_id=f"s{number}").text()

    async with AsyncClient(address) as client:
        await asyncio.gather(*(converse(client, number) for number in range(sessions)))


def until_listening(log: Path) -> str:
    """Returns the address of the daemon that writes this log."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                return str(event["address"])
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


def measure(sessions: int, exchanges: int) -> None:
    """Prints the figures for one number of sessions of one length."""
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as name:
        folder = Path(name)
        log, store = folder / "log", folder / "store" / "sessions.db"
        with log.open("w") as output:
            daemon = subprocess.Popen(
                [
                    sys.executable, "-m", "ruvd", "serve", "--engine", "echo",
                    "--store", f"sqlite:{store}", "--listen", "127.0.0.1:0",
                    "--max-sessions", str(sessions + 1), "--log-format", "json",
                ],
                stderr=output,
            )  # fmt: skip
        try:
            address = until_listening(log)
            process = psutil.Process(daemon.pid)
            before = process.memory_info().rss
            asyncio.run(fill(address, sessions, exchanges))
            after = process.memory_info().rss
        finally:
            daemon.terminate()
            daemon.wait()
        size = store.stat().st_size
        text = 2 * sum(len(message(0, exchange)) for exchange in range(exchanges))
        print(
            f"{sessions:>7,} sessions of {exchanges:>3} exchanges, {text / 1024:.1f} KiB of text:"
            f" {size / sessions / 1024:.1f} KiB of disk a session, {size / (1 << 20):.0f} MiB"
            f" together; daemon {before / (1 << 20):.0f} MiB before, {after / (1 << 20):.0f} after"
        )


def main() -> None:
    """Measures short and long sessions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    arguments = parser.parse_args()
    print(describe())
    for exchanges in (1, 10, 100):
        measure(max(10, arguments.sessions // exchanges), exchanges)


if __name__ == "__main__":
    main()
