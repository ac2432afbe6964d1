"""The limits of a tenant, which the operator sets: quotas, and what its requests may ask for.

None is no limit of the tenant's own; the daemon's limits hold in any case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The limits of one tenant.

    `weight` is its share of the slots in relation to other tenants that wait for one. `models`,
    `extra_body` and `tools` list what its requests may name, with `*` for any text.
    """

    max_sessions: int | None = None
    max_stored_bytes: int | None = None
    max_inflight: int | None = None
    tokens_per_minute: int | None = None
    weight: float = 1.0
    max_output_tokens: int | None = None
    max_schema_bytes: int | None = None
    max_answer_bytes: int | None = None
    models: tuple[str, ...] | None = None
    extra_body: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None


QUOTAS = ("max_sessions", "max_stored_bytes", "max_inflight", "tokens_per_minute", "receiving")
"""The quotas that QuotaExceeded names. `receiving` is the room for requests that are on their way,
of which a tenant may have half. The others are limits of the tenant."""

UNLIMITED = TenantLimits()

LimitsOf: TypeAlias = Callable[[str], TenantLimits]
"""Returns the limits of a tenant."""


def unlimited(_tenant: str) -> TenantLimits:
    """Returns no limits, for every tenant."""
    return UNLIMITED
