"""The fixture `store`, which runs a test on every kind of store, open and empty."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FrozenClock
from postgres import Server, running

from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.sealing.keys import KeyRing, OperatorKeys
from ruvd.stores.memory import MemoryStore
from ruvd.stores.postgres.store import PostgresStore
from ruvd.stores.sqlite.sealed_rows import SealedRows
from ruvd.stores.sqlite.store import SqliteStore


def _ignore(event: Event) -> None:
    """Ignores the event."""


def _memory(path: Path) -> Store:
    return MemoryStore()


def _sqlite(path: Path) -> Store:
    return SqliteStore(path, clock=FrozenClock(), observer=_ignore)


def _sealed(path: Path) -> Store:
    sealing = SealedRows(OperatorKeys(KeyRing({"k": b"k" * 32})))
    return SqliteStore(path, clock=FrozenClock(), observer=_ignore, sealing=sealing)


def _postgres(conninfo: str) -> Store:
    return PostgresStore(conninfo, clock=FrozenClock(), observer=_ignore)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A PostgreSQL server for all tests of this process."""
    # A short path, as that of a Unix socket is limited; the server's user must be able to reach it.
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as server:
            yield server


@pytest.fixture(
    params=[_memory, _sqlite, _sealed, _postgres], ids=["memory", "sqlite", "sealed", "postgres"]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    make: Callable[[Any], Store] = request.param
    if make is _postgres:
        made = make(request.getfixturevalue("postgres").new_schema())
    else:
        made = make(tmp_path / "ruvd.db")
    await made.open()
    yield made
    await made.close()
