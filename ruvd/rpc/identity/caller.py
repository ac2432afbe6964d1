"""The identity of a caller: a tenant, a role, and the name that the credential gives.

The caller of a call is in a context variable while the call is handled. It is None while the daemon
asks nobody for an identity.
"""

from contextvars import ContextVar
from enum import Enum

from ruvd.core.values import value


class Role(Enum):
    """A set of permissions; `ruvd.rpc.identity.permissions` has the table."""

    USER = "user"
    READER = "reader"
    ADMIN = "admin"


@value(frozen=True, slots=True)
class Identity:
    """A caller: `name` is what the credential calls it, for people who read logs."""

    tenant: str
    role: Role = Role.USER
    name: str = ""


current: ContextVar[Identity | None] = ContextVar("ruvd_identity", default=None)


def sees_content() -> bool:
    """Tells whether the caller of the current call may read messages and prompts."""
    identity = current.get()
    return identity is None or identity.role is not Role.READER
