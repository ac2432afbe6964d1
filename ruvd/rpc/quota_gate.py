"""The gate for tenants beyond their quotas: each refused call has to cost the others little.

A refusal costs the event loop much less than an answer, but a caller that repeats refused calls at
once makes thousands a second of them. So refusals to one tenant leave at a bounded rate; those
beyond it wait, which slows down a caller that waits for them. Meanwhile, calls beyond the quota are
refused before their requests are received.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.events import Observer, QuotaRefused
from ruvd.rpc.identity import caller

# The refusals to one tenant that leave at once, and their rate afterwards. A refusal takes about
# 0.4 ms of a core, so a tenant's refusals take 2 % of it.
_BURST = 50
_PER_SECOND = 50.0
# The share of the daemon's memory for calls whose refusals wait, what such a call takes, and a
# tenant's share of these calls. More refusals leave at once.
_MEMORY_SHARE = 0.15
_CALL_BYTES = 30_000
_TENANT_SHARE = 0.75
_MAX_TENANTS = 1000
_COMPLETE = "/ruvd.v1.SessionService/Complete"
_BATCH_COMPLETE = "/ruvd.v1.SessionService/BatchComplete"


@dataclass(eq=False, slots=True)
class _Tenant:
    next_time: float = 0.0  # of the next refusal, if there were no burst
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served

    def seconds(self, now: float) -> float:
        """Returns the time until the next refusal may leave, 0 or less if it may now."""
        return self.next_time - now - _BURST / _PER_SECOND


class QuotaGate:
    """Reports refusals of calls beyond a quota, and paces them by tenant.

    At most `max_waiting` refusals wait at a time.
    """

    max_waiting = 2000

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
        self._tenants: dict[str, _Tenant] = {}
        self._waiting = 0
        self._quotas = quotas

    def limit_memory(self, memory_bytes: int) -> None:
        """Bounds the refusals that wait by a daemon's limit of memory."""
        self.max_waiting = int(memory_bytes * _MEMORY_SHARE) // _CALL_BYTES

    def check(self, method: str, receiving: int) -> None:
        """Raises QuotaExceeded for a call that would be refused, if refusals of its tenant wait.

        Otherwise the call is received first, as it may repeat a request id and join a completion.
        `receiving` is the number of other requests of the tenant that are being received. They will
        probably take the places that are free.
        """
        tenant = caller.tenant()
        entry = self._tenants.get(tenant)
        if entry is None or not (entry.waiting or entry.seconds(self._monotonic()) > 0):
            return
        if method == _COMPLETE:
            self._quotas.check(tenant, beside=receiving)
        elif method == _BATCH_COMPLETE:
            self._quotas.check_batch_call(tenant)

    async def refuse(self, error: QuotaExceeded, *, at_once: bool) -> None:
        """Reports the refusal of the current call, and returns when it may leave."""
        self._observer(QuotaRefused(error.quota))
        entry = self._entry(caller.tenant())
        most = self.max_waiting
        if at_once or entry.waiting >= most * _TENANT_SHARE or self._waiting >= most:
            # It counts, so that the next calls of a flood are refused before they are received.
            if entry.seconds(self._monotonic()) <= 0:
                self._count(entry)
            return
        entry.waiting += 1
        self._waiting += 1
        try:
            async with entry.turn:
                if (seconds := entry.seconds(self._monotonic())) > 0:
                    await self._sleep(seconds)
                self._count(entry)
        finally:
            entry.waiting -= 1
            self._waiting -= 1

    def _count(self, entry: _Tenant) -> None:
        entry.next_time = max(entry.next_time, self._monotonic()) + 1 / _PER_SECOND

    def _entry(self, tenant: str) -> _Tenant:
        """Returns the tenant's entry. Those that have no effect any more are dropped first."""
        if tenant not in self._tenants and len(self._tenants) >= _MAX_TENANTS:
            now = self._monotonic()
            self._tenants = {
                name: each
                for name, each in self._tenants.items()
                if each.waiting or each.next_time > now
            }
        return self._tenants.setdefault(tenant, _Tenant())
