"""The check of callers at the listener for replicas: a replica's certificate, and its mark."""

import functools
import math
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

from cryptography import x509

from ruvd.core.errors import Unauthenticated
from ruvd.rpc.identity import caller, permissions
from ruvd.rpc.peers import marks, routing

_PEM = "x509_pem_cert"
_MAX_KNOWN = 1024

# The id of the replica that the current call was forwarded to; empty for a caller's own call.
target: ContextVar[str] = ContextVar("ruvd_peer_target", default="")


class PeerCallers:
    """Makes the identity in a call's mark the caller of that call. A CallerCheck.

    TLS has checked that an authority for replicas has signed the certificate. If replicas share a
    `name`, the certificate must have it, too. `has_identity` says whether callers have identities:
    a replica that knows no callers must not call one that does.
    """

    def __init__(self, name: str, *, has_identity: bool) -> None:
        self._name = name
        self._has_identity = has_identity
        self._known = functools.lru_cache(_MAX_KNOWN)(_read)

    @property
    def certificates(self) -> object:
        """The certificates decide, so `admit_call` has to follow `admit`."""
        return self

    async def admit(self, method: str, metadata: marks.Metadata) -> None:
        """Makes the caller of the mark the current one. Raises Unauthenticated."""
        mark = marks.read(metadata)
        if (mark.identity is not None) is not self._has_identity:
            raise Unauthenticated(
                "the replicas differ in whether callers need an identity: give them equal settings"
            )
        caller.current.set(mark.identity)
        target.set(mark.replica)
        routing.batch_item.set(mark.is_batch_item)

    def admit_call(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Checks the certificate. Raises Unauthenticated and PermissionDenied."""
        pem = next(iter(auth_context.get(_PEM, ())), None)
        if pem is None:
            raise Unauthenticated("the connection has no client certificate")
        names, expiry = self._known(pem)
        if expiry <= time.time():
            raise Unauthenticated("the certificate of the calling replica has expired")
        if self._name and self._name not in names:
            raise Unauthenticated(
                f"the certificate of the calling replica lacks the name {self._name}"
            )
        identity = caller.current.get()
        if identity is not None:
            permissions.check(method, identity)


def _read(pem: bytes) -> tuple[frozenset[str], float]:
    """Returns the host names in a certificate and the time of its expiry."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:  # cryptography is stricter than TLS
        return frozenset(), -math.inf
    expiry = certificate.not_valid_after_utc.timestamp()
    try:
        kind = x509.SubjectAlternativeName
        names = certificate.extensions.get_extension_for_class(kind).value
    except (ValueError, x509.ExtensionNotFound):
        return frozenset(), expiry
    return frozenset(names.get_values_for_type(x509.DNSName)), expiry
