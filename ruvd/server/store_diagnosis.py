"""The diagnosis of the store that the settings name, for `ruvd doctor` and for the daemon's log."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.diagnosis import Finding

if TYPE_CHECKING:
    from ruvd.stores.sqlite.database import Durability

_log = logging.getLogger("ruvd.daemon")


async def diagnose(settings: Settings) -> list[Finding]:
    """Returns the findings about the store. Raises StoreUnavailable if it cannot be asked."""
    if settings.is_postgres:
        file = settings.store_password_file
        diagnose_server = await asyncio.to_thread(_for_postgres)
        return await diagnose_server(
            settings.store,
            password=(lambda: file.read_text().strip()) if file else (lambda: ""),
            timeout_seconds=settings.store_timeout_seconds,
            prepare=settings.store_prepares,
        )
    path = settings.sqlite_path
    if path is None:
        return [Finding("store", "memory", "all sessions are lost when the daemon ends")]
    return await asyncio.to_thread(_of_sqlite, path, settings.durability)


def _for_postgres() -> Callable[..., Awaitable[list[Finding]]]:
    """Imports the diagnosis, which reads files, as the driver is optional."""
    from ruvd.stores.postgres.diagnosis import diagnose as diagnose_server

    return diagnose_server


def _of_sqlite(path: Path, durability: "Durability") -> list[Finding]:
    from ruvd.stores.sqlite.diagnosis import diagnose as diagnose_file

    return diagnose_file(path, durability)


async def report(settings: Settings) -> None:
    """Logs a warning for each risk. A store that is down is reported elsewhere."""
    try:
        found = await diagnose(settings)
    except (StoreUnavailable, OSError, RuntimeError) as error:  # also of paths in a loop
        _log.debug("the settings of the store are unknown", extra={"reason": str(error)})
        return
    for each in found:
        if each.is_risk:
            fields = {"setting": each.name, "value": each.value, "meaning": each.meaning}
            _log.warning("a setting of the store weakens a promise", extra=fields)
