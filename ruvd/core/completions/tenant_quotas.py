"""The quotas of tenants for completions: how many run or wait, and how many tokens a minute.

A completion beyond a quota is refused with QuotaExceeded. Items of batches wait instead, and use at
most the batches' share of `max_inflight`, so that a batch leaves room for interactive completions.

Tokens are counted when a completion ends, as they are not known before. So a tenant may go beyond
`tokens_per_minute`, and then it waits until the rate has made up for it. What it has not used in
the last minute is its burst. A restart of the daemon forgets what was used.

Replicas that share a store tell each other what tenants use, now and then. A quota holds for the
sum of what is used here and what the others have told last.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager

from ruvd.core.completions.shared_usage import SharedUsage
from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.tenant_usage import UsageByTenant
from ruvd.core.tenant_limits import LimitsOf

# The tenants whose used tokens are remembered. Beyond it the one charged longest ago is forgotten.
_MAX_TENANTS = 10_000
_MINUTE_SECONDS = 60.0
# The delay after which a tenant with a quota of 0 is asked to try again.
_NEVER_SECONDS = 3600.0
# A batch looks at the used tokens again after this time at most.
_MAX_SLEEP_SECONDS = 30.0


class TenantQuotas:
    """Counts the completions and tokens of tenants, and refuses what exceeds their quotas."""

    def __init__(self, limits_of: LimitsOf, clock: Clock, batch_share: float) -> None:
        self._limits_of = limits_of
        self._clock = clock
        self._batch_share = batch_share
        self._running: Counter[str] = Counter()
        self._batch_running: Counter[str] = Counter()
        self._batch_calls: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        # By tenant: the tokens used in the minute before a time of the clock, and that time.
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._shared: SharedUsage | None = None  # None if no replica shares the store

    def share(self) -> None:
        """Makes the quotas hold for the sum over all replicas, as far as it is learned."""
        self._shared = SharedUsage()

    def check(self, tenant: str, *, batch: bool = False, beside: int = 0) -> None:
        """Raises QuotaExceeded unless the tenant may begin a completion now.

        It is one `beside` so many others that may begin before it.
        """
        limits = self._limits_of(tenant)
        if limits.max_inflight is not None and not self._has_room(
            tenant, batch=batch, beside=beside
        ):
            raise QuotaExceeded(
                f"the tenant may have {limits.max_inflight} completions that run or wait "
                "(max_inflight)",
                quota="max_inflight",
                retry_after_seconds=None if limits.max_inflight else _NEVER_SECONDS,
            )
        if limits.tokens_per_minute is not None and (seconds := self._debt_seconds(tenant)):
            raise QuotaExceeded(
                f"the tenant has used its {limits.tokens_per_minute} tokens a minute "
                "(tokens_per_minute)",
                quota="tokens_per_minute",
                retry_after_seconds=seconds,
            )

    def begin(self, tenant: str, *, batch: bool) -> None:
        """Counts a completion that begins."""
        self._running[tenant] += 1
        self._batch_running[tenant] += batch

    def end(self, tenant: str, *, batch: bool, tokens: Callable[[], int]) -> None:
        """Counts a completion that has ended; `tokens` is asked only if there is a quota."""
        _decrease(self._running, tenant, 1)
        _decrease(self._batch_running, tenant, batch)
        self.charge(tenant, tokens)
        self._wake(tenant)

    def charge(self, tenant: str, tokens: Callable[[], int]) -> None:
        """Counts tokens that a tenant has used; `tokens` is asked only if there is a quota."""
        limits = self._limits_of(tenant)
        if limits.tokens_per_minute and (count := tokens()) > 0:
            self._add(tenant, count)
            if self._shared:
                self._shared.count(tenant, count)

    def usage(self) -> UsageByTenant:
        """See `UsageExchange.usage`."""
        if self._shared is None:
            return {}
        limits_of = self._limits_of
        limited = [each for each in self._running if limits_of(each).max_inflight is not None]
        owed = {tenant: self._used_now(tenant) for tenant in reversed(list(self._used))}
        return self._shared.own(limited, self._running, self._batch_running, owed)

    def learn(self, others: Mapping[str, UsageByTenant]) -> None:
        """See `UsageExchange.learn`."""
        if self._shared:
            for tenant, tokens in self._shared.learn(others, self._used_now).items():
                if self._limits_of(tenant).tokens_per_minute:
                    self._add(tenant, tokens)
            self._wake_all()

    def forget_others(self) -> None:
        """See `UsageExchange.forget_others`. The tokens that they have told remain."""
        if self._shared:
            self._shared.forget_others()
            self._wake_all()

    def is_used_up(self, tenant: str) -> bool:
        """Whether the tenant has used its tokens for now."""
        return self._debt_seconds(tenant) > 0

    def check_batch_call(self, tenant: str) -> None:
        """Raises QuotaExceeded unless the tenant may begin a call with a batch now."""
        most = self._limits_of(tenant).max_inflight
        if most is not None and self._batch_calls[tenant] >= most:
            raise QuotaExceeded(
                f"the tenant may have {most} batches at a time (max_inflight)",
                quota="max_inflight",
                retry_after_seconds=None if most else _NEVER_SECONDS,
            )

    @contextmanager
    def batch_call(self, tenant: str) -> Generator[None, None, None]:
        """Counts a call with a batch; a tenant may have `max_inflight` of them.

        Raises QuotaExceeded. The items of a call wait in memory, so the calls are limited, too.
        """
        self.check_batch_call(tenant)
        self._batch_calls[tenant] += 1
        try:
            yield
        finally:
            _decrease(self._batch_calls, tenant, 1)

    @asynccontextmanager
    async def batch_room(
        self, tenant: str, sleep: Callable[[float], Awaitable[None]]
    ) -> AsyncGenerator[None, None]:
        """Waits until an item of a batch may begin, which has to happen within the context.

        Raises QuotaExceeded only if a quota is nothing at all.
        """
        limits = self._limits_of(tenant)
        if limits.max_inflight is None and limits.tokens_per_minute is None:
            yield
            return
        if 0 in (limits.max_inflight, limits.tokens_per_minute):
            self.check(tenant, batch=True)
        while True:
            if seconds := self._debt_seconds(tenant):
                await sleep(min(seconds, _MAX_SLEEP_SECONDS))
            elif not self._has_room(tenant, batch=True):
                await self._wait(tenant)
            else:
                break
        try:
            yield
        finally:  # there may be room for the next one, whether this one has begun or not
            self._wake(tenant)

    def batch_items(self, tenant: str) -> int | None:
        """Returns how many items of the tenant's batches may run at a time, None for any number."""
        most = self._limits_of(tenant).max_inflight
        return None if most is None else max(1, int(most * self._batch_share))

    def _has_room(self, tenant: str, *, batch: bool, beside: int = 0) -> bool:
        most, most_items = self._limits_of(tenant).max_inflight, self.batch_items(tenant)
        if most is None or most_items is None:
            return True
        running, items = self._running[tenant] + beside, self._batch_running[tenant]
        if self._shared:
            running += self._shared.running[tenant]
            items += self._shared.batch_running[tenant]
        return running < most and not (batch and items >= most_items)

    def _debt_seconds(self, tenant: str) -> float:
        """Returns the time until the tenant may begin a completion again, 0 if it may now."""
        rate = self._limits_of(tenant).tokens_per_minute
        if rate is None:
            return 0.0
        if not rate:
            return _NEVER_SECONDS
        used = self._used_now(tenant)
        return 0.0 if used < rate else (used - rate + 1) * _MINUTE_SECONDS / rate

    def _add(self, tenant: str, tokens: float) -> None:
        self._used[tenant] = self._used_now(tenant) + tokens, self._clock.monotonic()
        self._used.move_to_end(tenant)
        if len(self._used) > _MAX_TENANTS:
            self._used.popitem(last=False)

    def _used_now(self, tenant: str) -> float:
        entry = self._used.get(tenant)
        rate = self._limits_of(tenant).tokens_per_minute
        if entry is None or not rate:
            return 0.0
        used = entry[0] - (self._clock.monotonic() - entry[1]) * rate / _MINUTE_SECONDS
        if used > 0:
            return used
        del self._used[tenant]
        return 0.0

    async def _wait(self, tenant: str) -> None:
        """Waits until there may be room for a completion of the tenant."""
        turn = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(tenant, deque())
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._wake(tenant)
            elif turn in waiting:
                waiting.remove(turn)
                self._forget_if_empty(tenant)
            raise

    def _wake(self, tenant: str) -> None:
        """Wakes an item that waits, if there is room. It wakes the next one in turn."""
        waiting = self._waiting.get(tenant)
        if not waiting or not self._has_room(tenant, batch=True):
            return
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        self._forget_if_empty(tenant)

    def _wake_all(self) -> None:
        for tenant in list(self._waiting):
            self._wake(tenant)

    def _forget_if_empty(self, tenant: str) -> None:
        if not self._waiting.get(tenant):
            self._waiting.pop(tenant, None)


def _decrease(counts: Counter[str], tenant: str, by: int) -> None:
    counts[tenant] -= by
    if not counts[tenant]:
        del counts[tenant]
