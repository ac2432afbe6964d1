"""The roles that may call each RPC. An RPC that is not in the table is allowed to nobody.

`reader` sees no content: it may list and read metadata and metrics. `GetSession` with messages is
refused by the service, as that depends on the request. `admin` administers the daemon as a whole,
but reaches only its own tenant's sessions.
"""

from ruvd.core.errors import PermissionDenied
from ruvd.rpc.identity.caller import Identity, Role

_SERVICE = "/ruvd.v1.SessionService/"
_ADMIN_SERVICE = "/ruvd.admin.v1.AdminService/"
_ALL = frozenset(Role)
_WITH_CONTENT = frozenset({Role.USER, Role.ADMIN})
_ADMINS = frozenset({Role.ADMIN})

ROLES: dict[str, frozenset[Role]] = {
    f"{_SERVICE}CreateSession": _WITH_CONTENT,
    f"{_SERVICE}GetSession": _ALL,
    f"{_SERVICE}ListSessions": _ALL,
    f"{_SERVICE}UpdateSession": _WITH_CONTENT,
    f"{_SERVICE}AppendMessages": _WITH_CONTENT,
    f"{_SERVICE}CompactSession": _WITH_CONTENT,
    f"{_SERVICE}EndSession": _WITH_CONTENT,
    f"{_SERVICE}ForkSession": _WITH_CONTENT,
    f"{_SERVICE}GetServerInfo": _ALL,
    f"{_SERVICE}GetSessionMetrics": _ALL,
    f"{_SERVICE}ListModels": _ALL,
    f"{_SERVICE}Complete": _WITH_CONTENT,
    f"{_SERVICE}ResumeCompletion": _WITH_CONTENT,
    f"{_SERVICE}CancelCompletion": _WITH_CONTENT,
    f"{_SERVICE}BatchComplete": _WITH_CONTENT,
    f"{_ADMIN_SERVICE}GetStatus": _ADMINS,
    f"{_ADMIN_SERVICE}Drain": _ADMINS,
    f"{_ADMIN_SERVICE}Undrain": _ADMINS,
    f"{_ADMIN_SERVICE}SetLogLevel": _ADMINS,
    f"{_ADMIN_SERVICE}Backup": _ADMINS,
    f"{_ADMIN_SERVICE}ListTenants": _ADMINS,
    f"{_ADMIN_SERVICE}ListCompletions": _ADMINS,
    f"{_ADMIN_SERVICE}ReloadSecrets": _ADMINS,
    f"{_ADMIN_SERVICE}ReloadSettings": _ADMINS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ALL,
}
_NOBODY: frozenset[Role] = frozenset()


def check(method: str, identity: Identity) -> None:
    """Raises PermissionDenied if the identity's role may not call the method."""
    if identity.role not in ROLES.get(method, _NOBODY):
        name = method.rpartition("/")[2]
        raise PermissionDenied(f"the role {identity.role.value} may not call {name}")
