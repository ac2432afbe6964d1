"""The living replicas by the short ids that completions name, as they were a moment ago."""

import asyncio
import time
from collections.abc import Callable, Mapping

from ruvd.core import ids
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.replicas import Replica, Replicas

_MAX_AGE_SECONDS = 1.0


class Directory:
    """Finds replicas; the store is asked once a second at most."""

    def __init__(self, replicas: Replicas, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._replicas = replicas
        self._monotonic = monotonic
        self._others: Mapping[str, Replica] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def find(self, short_id: str) -> Replica | None:
        """Returns the other living replica of a short id.

        While the store cannot be asked, the last answer counts.
        """
        async with self._reading:
            now = self._monotonic()
            if self._read_at is None or now - self._read_at > _MAX_AGE_SECONDS:
                try:
                    others = await self._replicas.others()
                except StoreUnavailable:  # observed
                    return self._others.get(short_id)
                self._others = {ids.short(each.id): each for each in others}
                self._read_at = now
        return self._others.get(short_id)
