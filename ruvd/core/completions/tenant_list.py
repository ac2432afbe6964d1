"""The tenants that have sessions or completions, for an administrator, page by page."""

from collections import Counter

from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.ports.store import TenantCounts
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenants import tenant_of
from ruvd.core.values import value


@value(frozen=True, slots=True)
class TenantState:
    """A tenant: its counts in the store, and the number of its completions that run or wait."""

    counts: TenantCounts
    running: int


class TenantList:
    """The tenants of one daemon."""

    def __init__(self, sessions: SessionRegistry, completions: CompletionRegistry) -> None:
        self._sessions = sessions
        self._completions = completions

    async def page(self, after: str, limit: int) -> tuple[list[TenantState], bool]:
        """Returns up to `limit` tenants whose names follow `after`, and whether there are more."""
        running = Counter(tenant_of(each) for each in self._completions.all_running())
        stored = {each.tenant: each for each in await self._sessions.tenants(after, limit + 1)}
        # A tenant whose completions are all stateless has nothing in the store.
        others = {tenant for tenant in running if tenant > after}
        names = sorted(stored.keys() | others)
        page = [
            TenantState(stored.get(name) or TenantCounts(name), running[name])
            for name in names[:limit]
        ]
        return page, len(names) > limit
