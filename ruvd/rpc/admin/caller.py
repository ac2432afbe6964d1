"""The check of callers at the admin socket: whoever may open its file is an administrator."""

from collections.abc import Iterable, Mapping, Sequence

from ruvd.rpc.identity import caller, permissions
from ruvd.rpc.identity.caller import Identity, Role

# It has no tenant, as nothing that belongs to one can be reached at the socket.
_OWNER = Identity("", Role.ADMIN, "admin socket", "socket")


class SocketOwner:
    """The caller check of the admin socket. Credentials are neither needed nor looked at."""

    @property
    def certificates(self) -> None:
        """See `CallerCheck.certificates`."""

    async def admit(self, method: str, _metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Makes the owner of the socket the current caller. Raises PermissionDenied."""
        self.admit_call(method, {})

    def admit_call(self, method: str, _auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Does the same."""
        caller.current.set(_OWNER)
        permissions.check(method, _OWNER)
