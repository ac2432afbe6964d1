"""Writes whose answer may get lost, tried again until their outcome is known."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ids import unguessable
from ruvd.core.ports.events import Observer, UncertainWriteEnded
from ruvd.stores.postgres.reads import Connection, one
from ruvd.stores.postgres.replication import confirm

_T = TypeVar("_T")

# While the outcome of a write is unknown, it is looked up and tried again after these pauses.
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 1.0


class Run(Protocol):
    """Runs an operation on a connection. Raises StoreUnavailable if the database fails."""

    async def __call__(self, operation: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Returns what the operation returns."""


async def write_until_known(
    run: Run,
    session_id: str,
    write: Callable[[Connection, str], Awaitable[_T | None]],
    timeout_seconds: float,
    observer: Observer,
) -> tuple[_T | None, bool]:
    """Runs a write, also again, until its outcome is known.

    Returns its result, and whether an earlier try has succeeded whose answer was lost. The result
    is None if the session is not as the write expects it, which then changes nothing.
    """
    write_id = unguessable()
    end = time.monotonic() + timeout_seconds
    pause, outcome = _FIRST_PAUSE_SECONDS, ""

    async def was_written() -> bool:
        nonlocal outcome
        found = await run(lambda db: _was_written(db, session_id, write_id))
        outcome = "written" if found else "repeated"
        return found

    try:
        while True:
            try:
                if outcome and await was_written():
                    return None, True
                result = await run(lambda db: write(db, write_id))
                # The first try may have been applied while the second one waited for it.
                return result, bool(outcome) and result is None and await was_written()
            except StoreUnavailable:
                outcome = "unknown"
                if time.monotonic() >= end:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
    finally:
        if outcome:
            observer(UncertainWriteEnded(session_id, outcome))


async def _was_written(db: Connection, session_id: str, write_id: str) -> bool:
    """Whether the session's last write is the one with this id."""
    row = await one(db, "SELECT write_id FROM sessions WHERE id = %s", (session_id,))
    if row is None or row[0] != write_id:
        return False
    await confirm(db)
    return True
