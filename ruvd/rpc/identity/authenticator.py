"""Decides who calls: by client certificate, bearer token, JWT, or the socket, in this order.

A credential that is present and wrong is an error, whatever else the call has. gRPC gives the
metadata before it receives the request, but the certificate only afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ruvd.core.errors import Unauthenticated
from ruvd.rpc.identity import caller, permissions
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.identity.tokens import PREFIX, TokenFile

_MAX_TOKEN_BYTES = 16_384
_MISSING = "no credential: send `authorization: Bearer TOKEN`, or use a client certificate"


class Certificates(Protocol):
    """Identities of client certificates."""

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
        """Returns the identity of a call's certificate, None without one."""


class WebTokens(Protocol):
    """Identities of JWTs."""

    async def identify(self, token: str) -> Identity:
        """Returns the identity of a token."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """The kinds of identity that callers of one server may have; None where one is off."""

    certificates: Certificates | None = None
    tokens: TokenFile | None = None
    web_tokens: WebTokens | None = None
    socket: Identity | None = None

    async def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Makes the caller of the metadata the current one.

        Raises Unauthenticated, IdentityUnavailable and PermissionDenied. If certificates give
        identities, `admit_call` has to follow, and only that one decides.
        """
        identity = await self._bearer(metadata) or self.socket
        caller.current.set(identity)
        if self.certificates is None:
            _permit(method, identity)

    def admit_call(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Makes the owner of the certificate the current caller, if the connection has one.

        Raises Unauthenticated and PermissionDenied.
        """
        identity = caller.current.get()
        if self.certificates and (owner := self.certificates.identify(auth_context)):
            identity = owner
            caller.current.set(owner)
        _permit(method, identity)

    async def _bearer(self, metadata: Sequence[tuple[str, str | bytes]]) -> Identity | None:
        values = [each for name, each in metadata if name == "authorization"]
        if not values:
            return None
        value = values[0]
        if len(values) > 1 or not isinstance(value, str) or len(value) > _MAX_TOKEN_BYTES:
            raise Unauthenticated("authorization must be given once, and be a short text")
        scheme, _, token = value.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("authorization must be `Bearer TOKEN`")
        if token.startswith(PREFIX):
            if self.tokens is None:
                raise Unauthenticated("the daemon has no tokens_file, so it knows no such token")
            return self.tokens.identify(token)
        if self.web_tokens is None:
            raise Unauthenticated("the bearer token is unknown, and JWTs are not accepted")
        return await self.web_tokens.identify(token)


def _permit(method: str, identity: Identity | None) -> None:
    if identity is None:
        raise Unauthenticated(_MISSING)
    permissions.check(method, identity)
