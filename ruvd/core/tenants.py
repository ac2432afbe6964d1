"""The tenant in an id.

Ids of clients never have a slash, so the id of a session or completion in the core is `TENANT/ID`,
and `ID` alone for the tenant `default`, to whom all belongs that is made without identities. A
caller names only `ID`, so the ids of other tenants cannot be reached. Whatever is kept by an id
(history, events, KV states, affinity) is its tenant's by that.
"""

DEFAULT = "default"
_SEPARATOR = "/"
# A tenant has no line break.
_NOBODYS = "\n"
_REQUEST_SEPARATOR = "\n"


def scoped(tenant: str, own_id: str) -> str:
    """Returns the id in the core of what a tenant calls `own_id`; empty for an empty one."""
    if not own_id:
        return ""
    if _SEPARATOR in own_id:  # no tenant has such an id, but it might be read as another tenant's
        return _NOBODYS + own_id
    return own_id if tenant == DEFAULT else f"{tenant}{_SEPARATOR}{own_id}"


def tenant_of(scoped_id: str) -> str:
    """Returns the tenant to whom an id of the core belongs."""
    return scoped_id.rpartition(_SEPARATOR)[0] or DEFAULT


def own(scoped_id: str) -> str:
    """Returns the id by which the tenant knows it."""
    return scoped_id.rpartition(_SEPARATOR)[2]


def prefix(tenant: str) -> str:
    """Returns how the tenant's ids begin; what follows has no slash."""
    return "" if tenant == DEFAULT else f"{tenant}{_SEPARATOR}"


def scoped_request(tenant: str, request_id: str) -> str:
    """Returns the request id in the core of a tenant's `request_id`; empty for an empty one.

    The prefix is there for every tenant, because a request id may be any text.
    """
    return f"{tenant}{_REQUEST_SEPARATOR}{request_id}" if request_id else ""


def own_request(scoped_id: str) -> str:
    """Returns the request id as its caller wrote it, for error texts.

    Without identities that is the id itself; one with a line break is shortened then.
    """
    return scoped_id.partition(_REQUEST_SEPARATOR)[2] or scoped_id
