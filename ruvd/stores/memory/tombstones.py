"""The tombstones of the store in memory: which sessions have gone, and why."""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from ruvd.core.ports.store import Gone, TombstoneLimits
from ruvd.core.tenants import tenant_of

# The limit that `Store.expire` promises.
_MAX_PRUNED = 1_000


class Tombstones:
    """The tombstones, within their limits. All methods cost O(1), amortised."""

    def __init__(self, limits: TombstoneLimits) -> None:
        self._limits = limits
        # Both in the order of their making. The inner ones are those of a tenant.
        self._all: OrderedDict[str, tuple[Gone, float]] = OrderedDict()
        self._of_tenant: dict[str, OrderedDict[str, None]] = {}

    @property
    def are_kept(self) -> bool:
        """Whether there are tombstones at all."""
        return self._limits.retention_seconds > 0

    def find(self, session_id: str, now: float) -> Gone | None:
        """Returns the reason on the session's tombstone, or None if there is none that counts."""
        found = self._all.get(session_id)
        if found is None or found[1] <= now - self._limits.retention_seconds:
            return None
        return found[0]

    def put(self, session_id: str, reason: Gone, now: float) -> None:
        """Makes a tombstone, and deletes the oldest ones beyond the limits."""
        if not self.are_kept:
            return
        self.discard(session_id)
        tenant = tenant_of(session_id)
        own = self._of_tenant.setdefault(tenant, OrderedDict())
        self._all[session_id] = (reason, now)
        own[session_id] = None
        if len(own) > self._limits.max_of_tenant:
            self.discard(next(iter(own)))
        if len(self._all) > self._limits.max_in_all:
            self.discard(next(iter(self._all)))

    def discard(self, session_id: str) -> None:
        """Deletes the session's tombstone if there is one."""
        if self._all.pop(session_id, None) is None:
            return
        tenant = tenant_of(session_id)
        own = self._of_tenant[tenant]
        del own[session_id]
        if not own:
            del self._of_tenant[tenant]

    def prune(self, now: float) -> None:
        """Deletes the first ones, up to a number, as long as they no longer count."""
        horizon = now - self._limits.retention_seconds
        first: Iterable[tuple[str, tuple[Gone, float]]] = islice(self._all.items(), _MAX_PRUNED)
        for session_id, (_, time) in list(first):
            if time > horizon:
                return
            self.discard(session_id)
