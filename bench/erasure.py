"""The cost of erasing ended sessions: the time until their content is gone, and that of commits.

Turns are committed in other sessions all the time, before and while the sessions are erased.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ruvd.core.model import Message, Role, Session
from ruvd.core.ports.store import Commit
from ruvd.server.system_clock import SystemClock
from ruvd.stores.sqlite.store import SqliteStore

MARK = b"ERASE-ME"
MESSAGE_BYTES = 100_000
PAUSE_SECONDS = 0.005


async def turn(store: SqliteStore, session: Session, text: str) -> Session:
    """Commits a turn and returns the session after it."""
    number = session.exchange_count
    messages = [(number, Message(role, text)) for role in (Role.USER, Role.ASSISTANT)]
    session = replace(
        session,
        message_count=session.message_count + 2,
        exchange_count=number + 1,
        size_bytes=session.size_bytes + 2 * len(text),
    )
    await store.commit(Commit(session, messages))
    return session


async def create(store: SqliteStore, name: str) -> Session:
    """Creates a session that does not expire."""
    session = Session(name, time.time(), time.time(), 1e9)
    await store.commit(Commit(session, create=True))
    return session


async def commit_turns(store: SqliteStore, name: str, milliseconds: list[float]) -> None:
    """Commits small turns until it is cancelled, and appends the time of each."""
    session = await create(store, name)
    while True:
        began = time.perf_counter()
        session = await turn(store, session, "a small turn " * 40)
        milliseconds.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(PAUSE_SECONDS)


def has_mark(path: Path) -> bool:
    """Whether a file has content of the ended sessions."""
    with path.open("rb") as file:
        return any(MARK in part for part in iter(lambda: file.read(1 << 24), b""))


def summary(milliseconds: list[float]) -> str:
    """Returns the distribution of the times, and empties the list."""
    cuts = statistics.quantiles(milliseconds, n=100)
    text = f"p50 {cuts[49]:.2f}, p99 {cuts[98]:.1f}, max {max(milliseconds):.1f} ms"
    milliseconds.clear()
    return text


async def measure(folder: Path, sessions: int, exchanges: int) -> None:
    """Prints the figures of one run."""
    path = folder / "s.db"
    store = SqliteStore(path, clock=SystemClock(""), observer=lambda _: None)
    await store.open()
    for number in range(sessions):
        session = await create(store, f"s-{number}")
        for _ in range(exchanges):
            session = await turn(store, session, MARK.decode() * (MESSAGE_BYTES // len(MARK)))
    times: list[float] = []
    tasks = [asyncio.create_task(commit_turns(store, f"other-{n}", times)) for n in range(4)]
    await asyncio.sleep(5)
    print("commits before:         ", summary(times))
    began = time.monotonic()
    for number in range(sessions):
        await store.end(f"s-{number}")
    files = (path, Path(f"{path}-wal"))
    while await asyncio.to_thread(lambda: any(map(has_mark, files))):  # noqa: ASYNC110  it polls files
        await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    print("commits while erasing:  ", summary(times))
    mebibytes = sessions * exchanges * 2 * MESSAGE_BYTES / (1 << 20)
    print(f"{mebibytes:.0f} MiB were gone after {seconds:.1f} s")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()


def main() -> None:
    """Runs the benchmark with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--exchanges", type=int, default=8, help="exchanges of 200 kB in each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments.sessions, arguments.exchanges))


if __name__ == "__main__":
    main()
