"""The process as administrators reach it, by RPC and by signal."""

import logging
from collections.abc import Callable, Sequence

from ruvd.config.loader import Settings
from ruvd.core.completions.tenant_list import TenantList
from ruvd.core.errors import ShuttingDown
from ruvd.core.ports.secrets import ReloadedSecret, SecretSource
from ruvd.rpc.admin.ports import LogLevel, MemoryUse, ReloadedSettings
from ruvd.rpc.admin.service import AdminService
from ruvd.rpc.component_state import ComponentState
from ruvd.rpc.health import Readiness
from ruvd.rpc.validation import RequestLimits
from ruvd.server.backups import Backups
from ruvd.server.composition import Core
from ruvd.server.memory_budget import MemoryBudget
from ruvd.server.named_engines import NamedEngines

_log = logging.getLogger("ruvd.daemon")


class Administration:
    """Drains the daemon and reads its secrets again: the `Process` of AdminService.

    `on_drain` is called at each drain, `memory_use` reads the memory, and `secrets` are all files
    that can be read again. `settings` reads the settings again.
    """

    def __init__(self, version: str, readiness: Readiness) -> None:
        self.version = version
        self._readiness = readiness
        self.on_drain: Callable[[], object] = lambda: None
        self.memory_use: Callable[[], MemoryUse] = lambda: MemoryUse(0, 0)
        self.secrets: list[SecretSource] = []
        self.settings: NamedEngines | None = None

    @property
    def ready(self) -> bool:
        """See `Process.ready`."""
        return self._readiness.ready

    @property
    def draining(self) -> bool:
        """See `Process.draining`."""
        return self._readiness.draining

    @property
    def stopping(self) -> bool:
        """See `Process.stopping`."""
        return self._readiness.stopping

    @property
    def memory(self) -> MemoryUse:
        """See `Process.memory`."""
        return self.memory_use()

    @property
    def engine(self) -> ComponentState:
        """See `Process.engine`."""
        return self._readiness.engine

    @property
    def store(self) -> ComponentState:
        """See `Process.store`."""
        return self._readiness.store

    def drain(self) -> None:
        """Turns readiness off, and saves KV states now, as the shutdown may leave no time."""
        if not self.draining:
            _log.info("readiness turned off")
        self._readiness.drain()
        self.on_drain()

    def undrain(self) -> None:
        """See `Process.undrain`."""
        was_draining = self.draining
        self._readiness.undrain()
        if was_draining:
            _log.info("readiness no longer turned off")

    async def reload_secrets(self) -> Sequence[ReloadedSecret]:
        """See `Process.reload_secrets`."""
        results: list[ReloadedSecret] = []
        for source in self.secrets:
            results += await source.reload()
        return results

    def hang_up(self) -> None:
        """Begins to read the settings again, unless the daemon is shutting down."""
        if self.settings and not self.stopping:
            self.settings.request_reload()

    async def reload_settings(self) -> ReloadedSettings:
        """See `Process.reload_settings`."""
        if self.stopping or self.settings is None:
            raise ShuttingDown("the daemon is starting or shutting down")
        return await self.settings.reload_settings()


def build_admin_service(
    settings: Settings,
    core: Core,
    administration: Administration,
    log_level: LogLevel,
    memory: MemoryBudget,
) -> AdminService:
    """Builds the gRPC service of administration."""
    administration.memory_use = lambda: MemoryUse(memory.resident_bytes, memory.limit_bytes)
    return AdminService(
        administration,
        core.completions,
        core.activity,
        TenantList(core.sessions, core.completions),
        log_level,
        _build_backups(settings),
        RequestLimits(max_request_bytes=settings.max_request_bytes),
    )


def _build_backups(settings: Settings) -> Backups:
    """Builds what makes backups; it refuses them for a store that is not SQLite's."""
    store, directory = settings.sqlite_path, settings.backups_path
    if store is None or directory is None:
        return Backups()
    from ruvd.stores.sqlite.backup import back_up  # noqa: PLC0415  # only for such a store

    return Backups(back_up, store, directory)
