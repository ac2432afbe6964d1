"""The process as administrators reach it, by RPC and by signal."""

import logging
from collections.abc import Callable, Sequence

from ruvd.core.ports.secrets import ReloadedSecret, SecretSource
from ruvd.rpc.health import Readiness

_log = logging.getLogger("ruvd.daemon")


class Administration:
    """Drains the daemon and reads its secrets again: the `Process` of AdminService.

    `on_drain` is called at each drain, and `secrets` are all files that can be read again.
    """

    def __init__(self, version: str, readiness: Readiness) -> None:
        self.version = version
        self._readiness = readiness
        self.on_drain: Callable[[], object] = lambda: None
        self.secrets: list[SecretSource] = []

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
