"""The identity of a caller: a tenant, a role, and the name that the credential gives.

The caller of a call is in a context variable while the call is handled. It is None if the daemon
asks for no identity.
"""

from contextvars import ContextVar
from enum import Enum

from ruvd.core import tenants
from ruvd.core.values import value


class Role(Enum):
    """A set of permissions; `ruvd.rpc.identity.permissions` has the table."""

    USER = "user"
    READER = "reader"
    ADMIN = "admin"


@value(frozen=True, slots=True)
class Identity:
    """A caller: `name` is what the credential calls it, for people who read logs.

    `credential` is its kind: `certificate`, `token`, `jwt` or `socket`.
    """

    tenant: str
    role: Role = Role.USER
    name: str = ""
    credential: str = ""


current: ContextVar[Identity | None] = ContextVar("ruvd_identity", default=None)


def tenant() -> str:
    """Returns the tenant of the current call."""
    identity = current.get()
    return tenants.DEFAULT if identity is None else identity.tenant


def scoped_id(own_id: str) -> str:
    """Returns the id in the core of a session or completion of the current caller's."""
    return tenants.scoped(tenant(), own_id)


def scoped_request_id(own_id: str) -> str:
    """Returns the id in the core of a request id of the current caller's."""
    identity = current.get()
    return own_id if identity is None else tenants.scoped_request(identity.tenant, own_id)


def sees_content() -> bool:
    """Tells whether the caller of the current call may read messages and prompts."""
    identity = current.get()
    return identity is None or identity.role is not Role.READER
