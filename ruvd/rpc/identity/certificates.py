"""Identities of client certificates, by the URI (such as a SPIFFE id) or host names in them.

TLS has checked the certificate when the connection was made. Its expiry is checked at every call
too, because connections may live longer than certificates.
"""

import functools
import math
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cryptography import x509

from ruvd.core.errors import Unauthenticated
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.identity.rules import IdentityRules

_MAX_KNOWN = 1024
_PEM = "x509_pem_cert"


class _Certificate(NamedTuple):
    identity: Identity | None
    names: tuple[str, ...]
    expiry: float


class CertificateIdentities:
    """Gives identities to client certificates by rules on the names in them.

    The names are the certificate's URIs, or its host names if it has no URI.
    """

    def __init__(self, rules: IdentityRules) -> None:
        self._rules = rules
        self._known = functools.lru_cache(_MAX_KNOWN)(self._read)

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
        """Returns the identity of a call's certificate, None if the connection has none.

        Raises Unauthenticated if no rule matches it, or if it has expired.
        """
        pem = next(iter(auth_context.get(_PEM, ())), None)
        if pem is None:
            return None
        certificate = self._known(pem)
        if certificate.expiry <= time.time():
            raise Unauthenticated("the client certificate has expired")
        if certificate.identity is None:
            names = ", ".join(certificate.names) or "none"
            raise Unauthenticated(f"no rule matches the names in the client certificate: {names}")
        return certificate.identity

    def _read(self, pem: bytes) -> _Certificate:
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            names = _names(certificate)
        except ValueError:  # cryptography is stricter than TLS
            return _Certificate(None, (), math.inf)
        found = (self._rules.identify(name) for name in names)
        identity = next((each for each in found if each is not None), None)
        return _Certificate(identity, names, certificate.not_valid_after_utc.timestamp())


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        kind = x509.SubjectAlternativeName
        names = certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return ()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return tuple(uris or names.get_values_for_type(x509.DNSName))
