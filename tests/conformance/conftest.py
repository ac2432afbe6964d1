"""The fixture `store`, which runs a test on every kind of store, open and empty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fakes import FrozenClock

from ruvd.core.ports.events import Event
from ruvd.core.ports.store import Store
from ruvd.stores.memory import MemoryStore
from ruvd.stores.sqlite.store import SqliteStore


def _ignore(event: Event) -> None:
    """Ignores the event."""


def _memory(path: Path) -> Store:
    return MemoryStore()


def _sqlite(path: Path) -> Store:
    return SqliteStore(path, clock=FrozenClock(), observer=_ignore)


@pytest.fixture(params=[_memory, _sqlite], ids=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    make: Callable[[Path], Store] = request.param
    made = make(tmp_path / "ruvd.db")
    await made.open()
    yield made
    await made.close()
