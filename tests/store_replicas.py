"""Replicas in tests: stores of one PostgreSQL database, each as a daemon has it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
from fakes import FrozenClock
from postgres import Server
from postgres_link import Link

from ruvd.core.ports.clock import StoredClock
from ruvd.core.ports.events import Event, SessionTakenOver, UncertainWriteEnded, WriteFenced
from ruvd.stores.postgres.store import PostgresStore

WAIT_SECONDS = 60


def ignore(event: Event) -> None:
    """Ignores the event."""


@asynccontextmanager
async def replica(
    conninfo: str,
    *,
    timeout: float = 10.0,
    lease: float = 60.0,
    observer: Callable[[Event], None] = ignore,
    clock: StoredClock | None = None,
) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(
        conninfo,
        clock=clock or FrozenClock(),
        observer=observer,
        timeout_seconds=timeout,
        lease_seconds=lease,
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def two(
    server: Server, observer: Callable[[Event], None] = ignore
) -> AsyncIterator[tuple[PostgresStore, PostgresStore, str]]:
    conninfo = server.new_schema()
    async with (
        replica(conninfo, observer=observer) as one,
        replica(conninfo, observer=observer) as other,
    ):
        yield one, other, conninfo


def of_replicas(events: list[Event]) -> list[Event]:
    """The events that tell what replicas do to each other."""
    return [
        each
        for each in events
        if isinstance(each, SessionTakenOver | WriteFenced | UncertainWriteEnded)
    ]


def execute(conninfo: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as db:
        cursor = db.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def end_leases(conninfo: str) -> None:
    """Makes all leases be over, as if their replicas had been paused for long."""
    execute(conninfo, "UPDATE replicas SET until = clock_timestamp() - interval '1 second'")


def texts(exchanges: object) -> list[str]:
    assert isinstance(exchanges, list)
    return [message.content for exchange in exchanges for message in exchange]


async def waiting_for_locks(conninfo: str, count: int) -> None:
    """Returns once so many connections wait for a lock."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(WAIT_SECONDS):
        while execute(conninfo, statement) != [(count,)]:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)


@asynccontextmanager
async def linked(
    server: Server, observer: Callable[[Event], None] = ignore
) -> AsyncIterator[tuple[PostgresStore, Link, str]]:
    conninfo = server.new_schema()
    with tempfile.TemporaryDirectory(prefix="ruvd-link-", dir="/tmp") as directory:
        link = Link(Path(directory), server.directory)
        async with link.running(), replica(link.conninfo(conninfo), observer=observer) as store:
            yield store, link, conninfo
