"""Builds the store that the settings name.

A store is imported only when it is chosen, so that a daemon does not load libraries that it does
not use.
"""

from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.core.ports.background import StartTask
from ruvd.core.ports.clock import StoredClock
from ruvd.core.ports.events import Observer
from ruvd.core.ports.replicas import Replicas, SharesStore
from ruvd.core.ports.store import Store, StoreLocked, TombstoneLimits

if TYPE_CHECKING:
    from ruvd.sealing.keys import OperatorKeys

# The tombstones of all tenants, in those of one.
_TENANTS_GONE = 10


def build_store(
    settings: Settings,
    clock: StoredClock,
    observer: Observer,
    start_task: StartTask,
    keys: "OperatorKeys | None",
) -> Store:
    """Builds the store that the settings name. The keys encrypt the content of a sqlite store."""
    if settings.is_postgres:
        return _build_postgres(settings, clock, observer, start_task)
    path = settings.sqlite_path
    if path is None:
        from ruvd.stores.memory import MemoryStore

        return MemoryStore(_tombstones(settings))
    from ruvd.stores.sqlite.store import SqliteStore

    sealing = None
    if keys is not None:
        from ruvd.stores.sqlite.sealed_rows import SealedRows

        sealing = SealedRows(keys)
    return SqliteStore(
        path,
        durability=settings.durability,
        clock=clock,
        observer=observer,
        sealing=sealing,
        tombstones=_tombstones(settings),
    )


def replicas_of(store: Store) -> Replicas | None:
    """Returns the replicas that share a store, None for a store that only one daemon has."""
    return store.replicas if isinstance(store, SharesStore) else None


def _tombstones(settings: Settings) -> TombstoneLimits:
    return TombstoneLimits(
        settings.gone_session_retention_seconds,
        settings.max_gone_sessions,
        _TENANTS_GONE * settings.max_gone_sessions,
    )


def _build_postgres(
    settings: Settings, clock: StoredClock, observer: Observer, start_task: StartTask
) -> Store:
    try:
        from ruvd.stores.postgres.store import PostgresStore
    except ImportError as error:
        raise StoreLocked(
            f"the store {settings.store} needs the package psycopg ({error}): install"
            " 'ruvd[postgres]'"
        ) from None
    path = settings.store_password_file
    return PostgresStore(
        settings.store,
        clock=clock,
        observer=observer,
        password=(lambda: path.read_text().strip()) if path else (lambda: ""),
        connections=settings.store_connections,
        timeout_seconds=settings.store_timeout_seconds,
        lease_seconds=settings.store_lease_seconds,
        prepare=settings.store_prepares,
        start_task=start_task,
        tombstones=_tombstones(settings),
    )


def store_is_newer(settings: Settings) -> bool:
    """Tells whether a newer ruvd wrote the store's file, which no retry can change."""
    path = settings.sqlite_path
    if path is None:
        return False
    from ruvd.stores.sqlite.read_only import is_newer

    return is_newer(path)
