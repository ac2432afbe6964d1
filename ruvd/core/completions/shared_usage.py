"""The usage of tenants at the replicas that share a store, as one of these knows it.

Each replica tells the others how many tokens each tenant has used there, as a count that only
grows. The others add what it has grown by to what they have counted themselves, so each of them
has the sum of all, and the tenant makes up for that sum at its rate once and not at every replica.
Completions that run or wait are told as they are.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ruvd.core.ports.tenant_usage import TenantUsage, UsageByTenant

# The tenants whose tokens are told to others, and all that are told anything of.
_MAX_COUNTS = 1000
_MAX_TENANTS = 2000
# A count that has not grown for so many exchanges is dropped; every other replica has it by then.
_KEPT_EXCHANGES = 10


@dataclass(slots=True)
class _Count:
    tokens: int = 0
    exchange: int = 0  # the number of the last exchange before it has grown


class SharedUsage:
    """The tokens that this replica tells others of, and what it has learned from them."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        """The completions of each tenant that run or wait at other replicas."""
        self.batch_running: Counter[str] = Counter()
        """Those that are items of batches."""
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._known: Mapping[str, UsageByTenant] | None = None  # by replica, as learned last
        self._exchanges = 0

    def count(self, tenant: str, tokens: int) -> None:
        """Counts tokens that the tenant has used here."""
        entry = self._counts.setdefault(tenant, _Count())
        entry.tokens += tokens
        entry.exchange = self._exchanges
        self._counts.move_to_end(tenant)
        if len(self._counts) > _MAX_COUNTS:
            self._counts.popitem(last=False)

    def own(
        self,
        limited: Sequence[str],
        running: Mapping[str, int],
        batch_running: Mapping[str, int],
        owed: Mapping[str, float],
    ) -> UsageByTenant:
        """Returns the usage to be told to the others.

        `limited` are tenants whose number of completions has a limit.
        """
        for tenant, entry in list(self._counts.items()):
            if self._exchanges - entry.exchange > _KEPT_EXCHANGES:
                del self._counts[tenant]
        told = dict.fromkeys((*self._counts, *limited, *(each for each in owed if owed[each])))
        none = _Count()
        return {
            tenant: TenantUsage(
                running.get(tenant, 0),
                batch_running.get(tenant, 0),
                self._counts.get(tenant, none).tokens,
                owed.get(tenant, 0.0),
            )
            for tenant in islice(told, _MAX_TENANTS)
        }

    def learn(
        self, others: Mapping[str, UsageByTenant], owed: Callable[[str], float]
    ) -> Mapping[str, float]:
        """Takes the usage at the others; returns the tokens that each tenant owes here in addition.

        `owed` returns what it owes here already. If nothing is known of the others, it owes what
        they say that it does.
        """
        added: defaultdict[str, float] = defaultdict(float)
        self.running, self.batch_running = Counter(), Counter()
        for replica, usages in others.items():
            before = self._known.get(replica) if self._known is not None else None
            for tenant, usage in usages.items():
                self.running[tenant] += usage.running
                self.batch_running[tenant] += usage.batch_running
                if self._known is None:
                    added[tenant] = max(added[tenant], usage.owed - owed(tenant))
                else:
                    added[tenant] += _growth(before, tenant, usage)
        self._known = others
        self._exchanges += 1
        return {tenant: tokens for tenant, tokens in added.items() if tokens > 0}

    def forget_others(self) -> None:
        """Forgets what others use."""
        self.running, self.batch_running = Counter(), Counter()
        self._known = None


def _growth(before: UsageByTenant | None, tenant: str, usage: TenantUsage) -> float:
    """Returns the tokens that were used at a replica since it told `before`, None for nothing."""
    if before is None:
        # If the count is old, and only new to this replica, much of it has been made up for.
        return min(usage.tokens, usage.owed)
    known = before.get(tenant)
    if known is not None and known.tokens <= usage.tokens:
        return usage.tokens - known.tokens
    return usage.tokens  # a count that has begun since
