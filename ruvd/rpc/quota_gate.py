"""The gate for tenants beyond their quotas: each refused call has to cost the others little.

A refusal costs the event loop much less than an answer, but a caller that repeats refused calls at
once makes thousands a second of them. So refusals to one tenant leave at a bounded rate; those
beyond it wait, which slows down a caller that waits for them. Meanwhile, calls beyond the quota are
refused before their requests are received.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.events import Observer, QuotaRefused
from ruvd.rpc.identity import caller

# The refusals to one tenant that leave at once, and their rate afterwards. A refusal takes about
# 0.4 ms of a core, so a tenant's refusals take 2 % of it.
_BURST = 50
_PER_SECOND = 50.0
# The longest wait of a refusal. More calls than wait this long are refused at once.
_MAX_SECONDS = 20.0
# The refusals that wait at a time, of all tenants. A call takes about 30 kB.
_MAX_WAITING = 2000
_MAX_TENANTS = 1000
_SERVICE = "/ruvd.v1.SessionService/"


class QuotaGate:
    """Reports refusals of calls beyond a quota, and paces them by tenant."""

    def __init__(
        self,
        quotas: TenantQuotas,
        observer: Observer,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._observer = observer
        self._monotonic = monotonic
        self._sleep = sleep
        self._next_times: dict[str, float] = {}  # by tenant; without a burst, of the next refusal
        self._waiting = 0
        self._checks = {
            f"{_SERVICE}Complete": quotas.check,
            f"{_SERVICE}BatchComplete": quotas.check_batch_call,
        }

    def check(self, method: str) -> None:
        """Raises QuotaExceeded for a call that would be refused, if refusals of its tenant wait.

        Otherwise the call is received first, as it may repeat a request id and join a completion.
        """
        tenant = caller.tenant()
        if tenant not in self._next_times or self._seconds(tenant, self._monotonic()) <= 0:
            return
        if check := self._checks.get(method):
            check(tenant)

    async def refuse(self, error: QuotaExceeded, *, at_once: bool) -> None:
        """Reports the refusal of the current call, and returns when it may leave."""
        self._observer(QuotaRefused(error.quota))
        tenant, now = caller.tenant(), self._monotonic()
        seconds = self._seconds(tenant, now)
        if seconds > _MAX_SECONDS or self._waiting >= _MAX_WAITING:
            return
        self._forget_past(now)
        self._next_times[tenant] = max(self._next_times.get(tenant, now), now) + 1 / _PER_SECOND
        if seconds <= 0 or at_once:
            return
        self._waiting += 1
        try:
            await self._sleep(seconds)
        finally:
            self._waiting -= 1

    def _seconds(self, tenant: str, now: float) -> float:
        """Returns the time for which a refusal of the tenant waits; 0 or less if it does not."""
        return self._next_times.get(tenant, now) - now - _BURST / _PER_SECOND

    def _forget_past(self, now: float) -> None:
        if len(self._next_times) >= _MAX_TENANTS:
            self._next_times = {name: at for name, at in self._next_times.items() if at > now}
        if len(self._next_times) >= _MAX_TENANTS:
            self._next_times.clear()
