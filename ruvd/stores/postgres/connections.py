"""The pool of connections to PostgreSQL, and what becomes of their errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.events import Observer, StoreStateChanged
from ruvd.stores.postgres.replication import Warnings, confirm

T = TypeVar("T")

_CONNECT_SECONDS = 5
# The server ends a statement before the client gives up waiting for it.
_SLACK_SECONDS = 2.0


class Connections:
    """A pool of connections, opened when it is used first. The store is up while the last call did
    not fail."""

    def __init__(
        self,
        conninfo: str,
        *,
        password: Callable[[], str],
        size: int,
        timeout_seconds: float,
        prepare: bool,
        observer: Observer,
    ) -> None:
        """`password` is asked for at each new connection; an empty one is libpq's own way."""
        self._conninfo = conninfo
        self._password = password
        self._size = size
        self._timeout_seconds = timeout_seconds
        self._prepare = prepare
        self._observer = observer
        self._warnings = Warnings()
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] | None = None
        self._up: bool | None = None

    async def open(self) -> None:
        """Opens the pool. Connections are made in the background, as far as they can be."""
        milliseconds = int(self._timeout_seconds * 1000)
        given = conninfo_to_dict(self._conninfo)
        options = (
            f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            f" -c idle_in_transaction_session_timeout={milliseconds}"
            " -c default_transaction_isolation=read\\ committed"
        )
        defaults: dict[str, str | int | None] = {
            "application_name": "ruvd",
            "connect_timeout": _CONNECT_SECONDS,
            "target_session_attrs": "read-write",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": milliseconds,
        }
        defaults |= given
        defaults["options"] = f"{options} {given.get('options', '')}".strip()
        conninfo = make_conninfo("", **defaults)
        self._pool = AsyncConnectionPool(
            conninfo,
            kwargs=self._arguments,
            configure=self._warnings.configure,
            min_size=min(2, self._size),
            max_size=self._size,
            timeout=self._timeout_seconds,
            max_waiting=0,
            reconnect_timeout=_CONNECT_SECONDS,
            open=False,
        )
        await self._pool.open()

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        if self._pool is not None:
            await self._pool.close()

    async def run(
        self,
        operation: Callable[[AsyncConnection[Any]], Awaitable[T]],
        *,
        repeats: bool = False,
    ) -> T:
        """Runs an operation on a connection. Raises StoreUnavailable for a database error.

        It is unknown then whether a statement that writes has taken effect. With `repeats` the
        operation runs again on another connection if its own is broken, as all those in the pool
        are after a restart of the server.
        """
        if self._pool is None:
            raise StoreUnavailable("the store is not open")
        tries = self._size + 1 if repeats else 1
        try:
            async with asyncio.timeout(self._timeout_seconds + _SLACK_SECONDS):
                while True:
                    tries -= 1
                    async with self._pool.connection() as db:
                        try:
                            result = await operation(db)
                            while self._warnings.take(db):
                                await confirm(db)
                            break
                        except psycopg.Error:
                            if not (db.broken and tries):
                                raise
        except psycopg.errors.UniqueViolation:
            raise
        except (psycopg.Error, PoolTimeout, PoolClosed, TimeoutError, OSError) as error:
            text = f"PostgreSQL: {_first_line(error)}"
            self._report(text)
            raise StoreUnavailable(text) from error
        self._report(None)
        return result

    def _report(self, fault: str | None) -> None:
        up = fault is None
        if up is not self._up:
            self._up = up
            self._observer(StoreStateChanged(up, fault or "PostgreSQL answers"))

    async def _arguments(self) -> dict[str, Any]:
        """Returns the arguments of a new connection."""
        arguments: dict[str, Any] = {
            "autocommit": True,
            "prepare_threshold": 5 if self._prepare else None,
        }
        if password := await asyncio.to_thread(self._password):
            arguments["password"] = password
        return arguments


def _first_line(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).strip().partition("\n")[0] or type(error).__name__
