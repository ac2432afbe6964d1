"""The sums of each tenant's completions, for GetSessionMetrics of a caller with an identity."""

from collections import OrderedDict

from ruvd.core.ports.events import CompletionEnded, Event
from ruvd.core.statistics import Statistics
from ruvd.core.tenants import tenant_of

_MAX_TENANTS = 1000


class TenantStatistics:
    """The sums over `all` tenants, and those of each. An Observer of the latter only.

    The sums of a tenant whose last completion is older than those of 1,000 others start again.
    """

    def __init__(self, all_tenants: Statistics) -> None:
        self.all = all_tenants
        self._tenants: OrderedDict[str, Statistics] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Counts the end of a completion for its tenant."""
        if not isinstance(event, CompletionEnded):
            return
        tenant = tenant_of(event.completion_id)
        statistics = self._tenants.setdefault(tenant, Statistics())
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > _MAX_TENANTS:
            self._tenants.popitem(last=False)
        statistics(event)

    def of(self, tenant: str) -> Statistics:
        """Returns the sums of one tenant."""
        return self._tenants.get(tenant) or Statistics()
