"""The numbers of sessions and messages in the store in memory."""

from collections.abc import Collection, Iterable, Sequence

from ruvd.core.model import Session
from ruvd.core.ports.store import StoreCounts, TenantCounts
from ruvd.core.tenants import tenant_of


def count(
    sessions: Iterable[Session], now: float, active_or_in_turn: Collection[str]
) -> StoreCounts:
    """Returns the numbers of all these sessions."""
    found = list(sessions)
    return StoreCounts(
        sessions=len(found),
        active=_active(found, now, active_or_in_turn),
        messages=sum(session.message_count for session in found),
    )


def count_by_tenant(
    sessions: Iterable[Session],
    now: float,
    after: str,
    limit: int,
    active_or_in_turn: Collection[str],
) -> Sequence[TenantCounts]:
    """See `Store.tenants`."""
    by_tenant: dict[str, list[Session]] = {}
    for session in sessions:
        if (tenant := tenant_of(session.id)) > after:
            by_tenant.setdefault(tenant, []).append(session)
    return [
        TenantCounts(
            tenant,
            sessions=len(own),
            active=_active(own, now, active_or_in_turn),
            messages=sum(each.message_count for each in own),
            history_bytes=sum(each.size_bytes for each in own),
        )
        for tenant, own in sorted(by_tenant.items())[:limit]
    ]


def _active(sessions: list[Session], now: float, active_or_in_turn: Collection[str]) -> int:
    return sum(each.expire_time > now or each.id in active_or_in_turn for each in sessions)
