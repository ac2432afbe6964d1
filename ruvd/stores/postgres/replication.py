"""Makes sure that acknowledged changes are replicated, if the server has synchronous standbys.

A commit waits for the standby. If that wait is cancelled, by a time-out or an operator, the change
is there all the same, and would be lost if the standby became the primary. So whoever finds what
may be such a change makes one more commit before it is acknowledged, which waits for all before it.
"""

from collections.abc import Awaitable
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg.errors import Diagnostic

_T = TypeVar("_T")


async def confirm(db: AsyncConnection[Any]) -> None:
    """Returns once all changes that this connection can see are as durable as a commit."""
    # A commit that has written nothing waits for nothing.
    await db.execute("SELECT pg_logical_emit_message(true, 'ruvd', '')")


async def confirmed(db: AsyncConnection[Any], read: Awaitable[_T]) -> _T:
    """Returns what a read finds, unless it is None, once that is as durable as a commit."""
    found = await read
    if found is not None:
        await confirm(db)
    return found


class Warnings:
    """The connections whose server has warned since they were asked last.

    It warns when the wait for a standby is cancelled; the text is in the server's language.
    """

    def __init__(self) -> None:
        self._warned: set[int] = set()

    async def configure(self, db: AsyncConnection[Any]) -> None:
        """Begins to listen to the warnings of a new connection."""
        key = id(db)
        self._warned.discard(key)

        def note(warning: Diagnostic) -> None:
            if warning.severity_nonlocalized == "WARNING":
                self._warned.add(key)

        db.add_notice_handler(note)

    def take(self, db: AsyncConnection[Any]) -> bool:
        """Whether the connection's server has warned since the last call."""
        warned = id(db) in self._warned
        self._warned.discard(id(db))
        return warned
