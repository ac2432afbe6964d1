"""The texts in `tenant_limits`: `PATTERN;max_sessions=100;weight=2;models=a|b`.

The first rule whose pattern matches the whole name of a tenant has all its limits. In a pattern `*`
stands for any text without a slash, and `**` for any text, as in the rules for identities.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ruvd.core.tenant_limits import UNLIMITED, LimitsOf, TenantLimits
from ruvd.core.text import name_pattern

_COUNTS = (
    "max_sessions",
    "max_stored_bytes",
    "max_inflight",
    "tokens_per_minute",
    "max_output_tokens",
    "max_schema_bytes",
    "max_answer_bytes",
)
_LISTS = ("models", "extra_body", "tools")
_KEYS = (*_COUNTS, "weight", *_LISTS)
_CACHED_TENANTS = 10_000
# The name of a tenant that only the pattern ** matches.
_ANY_TENANT = "/a tenant of any name/"


def parse_limits(text: str) -> tuple[re.Pattern[str], TenantLimits]:
    """Returns a rule's pattern and its limits. Raises ValueError."""
    name, *options = (part.strip() for part in text.split(";"))
    if not name:
        raise ValueError(f"{text!r}: the pattern of the tenant is missing")
    found: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _KEYS or not equals or key in found:
            raise ValueError(
                f"{text!r}: {option!r} must be KEY=VALUE, each key once, with one of the keys "
                f"{', '.join(_KEYS)}"
            )
        found[key] = value
    pattern = name_pattern(name)
    limits: dict[str, Any] = {"weight": _weight(text, found.get("weight", "1"))}
    limits |= {key: _count(text, key, found[key]) for key in _COUNTS if key in found}
    limits |= {key: _names(found[key]) for key in _LISTS if key in found}
    return pattern, TenantLimits(**limits)


def limits_by_tenant(rules: Sequence[str]) -> LimitsOf:
    """Returns the function that finds the limits of a tenant in the rules."""
    parsed = [parse_limits(rule) for rule in rules]

    @lru_cache(_CACHED_TENANTS)
    def limits_of(tenant: str) -> TenantLimits:
        return next((limits for rule, limits in parsed if rule.fullmatch(tenant)), UNLIMITED)

    return limits_of


def one_may_fill(rules: Sequence[str], max_sessions: int) -> bool:
    """Whether some tenant alone may have all of the daemon's sessions by the rules."""
    parsed = [parse_limits(rule) for rule in rules]
    is_unlimited = not any(pattern.fullmatch(_ANY_TENANT) for pattern, _ in parsed)
    limits = [each.max_sessions for _, each in parsed]
    return is_unlimited or any(each is None or each >= max_sessions for each in limits)


def _count(text: str, key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise ValueError(f"{text!r}: {key} must be a whole number, 0 or more")
    return int(value)


def _weight(text: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not 0.001 <= float(value) <= 1000:
        raise ValueError(f"{text!r}: weight must be a number from 0.001 to 1000")
    return float(value)


def _names(value: str) -> tuple[str, ...]:
    """Splits a list at its bars; an empty text is the empty list."""
    return tuple(part.strip() for part in value.split("|") if part.strip())
