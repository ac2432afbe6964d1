"""The contract by which replicas tell each other what each tenant uses of its quotas."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from ruvd.core.values import value


@value(frozen=True, slots=True)
class TenantUsage:
    """The usage of a tenant at one replica.

    `running` completions run or wait there, of which `batch_running` are items of batches. `tokens`
    is a count that only grows: those that the tenant has used there. `owed` is what the tenant has
    used at all replicas and not yet made up for, as far as this one knows.
    """

    running: int = 0
    batch_running: int = 0
    tokens: int = 0
    owed: float = 0.0


UsageByTenant: TypeAlias = Mapping[str, TenantUsage]


class UsageExchange(Protocol):
    """The usage of this replica, and its knowledge of that of the others."""

    def usage(self) -> UsageByTenant:
        """Returns the usage at this replica, of a bounded number of tenants."""

    def learn(self, others: Mapping[str, UsageByTenant]) -> None:
        """Takes the usage at each other living replica, all of the same moment.

        What `usage` returned before this is known to the others from now on.
        """

    def forget_others(self) -> None:
        """Forgets what others use, as it was not known for the time of a lease."""
