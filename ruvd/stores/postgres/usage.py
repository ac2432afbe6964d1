"""The usage of tenants at a replica, as JSON text in the replica's row.

It is written and read with each renewal of the lease. So it costs no statement of its own, is of
one instant for all tenants, and is gone with the replica. JSON's escapes keep every tenant's name.
"""

import json

from ruvd.core.ports.tenant_usage import TenantUsage, UsageByTenant


def encode(usages: UsageByTenant) -> str:
    """Returns the text for the usage of tenants; empty if there is none."""
    if not usages:
        return ""
    rows = {
        tenant: (each.running, each.batch_running, each.tokens, round(each.owed, 3))
        for tenant, each in usages.items()
    }
    return json.dumps(rows, separators=(",", ":"))


def decode(text: str) -> UsageByTenant:
    """Returns the usage in a text. One that cannot be read, of another version, has none."""
    try:
        return {
            tenant: TenantUsage(int(running), int(batch_running), int(tokens), float(owed))
            for tenant, (running, batch_running, tokens, owed, *_) in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
