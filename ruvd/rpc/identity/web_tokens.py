"""Identities of callers with a JSON Web Token (RFC 7519) of one issuer.

Checking a signature takes a tenth of a millisecond, so the identities of checked tokens are
remembered until the token expires or the issuer's keys change.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt

from ruvd.core.errors import IdentityUnavailable, Unauthenticated
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.identity.issuer_keys import IssuerKeys, KeySet
from ruvd.rpc.identity.rules import IdentityRules

_REQUIRED = ["iss", "aud", "exp", "sub"]
_MAX_KNOWN = 10_000
_WHY: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is of another issuer",
    jwt.InvalidSignatureError: "the token's signature is wrong",
}


class JwtPolicy(NamedTuple):
    """The tokens that are accepted. `tenant_claim` names the claim with the tenant, or is empty."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    leeway_seconds: float
    tenant_claim: str


class _Known(NamedTuple):
    identity: Identity
    expiry: float


class JwtIdentities:
    """Gives identities to JWTs by rules on their subject."""

    def __init__(self, policy: JwtPolicy, rules: IdentityRules, source: IssuerKeys) -> None:
        self._policy = policy
        self._rules = rules
        self._source = source
        self._keys: KeySet | None = None  # those that the known tokens were checked with
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def identify(self, token: str) -> Identity:
        """Returns the identity of a token.

        Raises Unauthenticated, and IdentityUnavailable if the issuer's keys are not known yet.
        """
        if self._keys is not self._source.keys:
            self._keys = self._source.keys
            self._known.clear()
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is None:
            known = await self._check(token)
            self._known[digest] = known
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        if known.expiry <= time.time():
            raise Unauthenticated("the token has expired")
        return known.identity

    async def _check(self, token: str) -> _Known:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Unauthenticated("the bearer token is neither ruvd's nor a valid JWT") from None
        algorithm: str = header.get("alg") or ""
        if algorithm not in self._policy.algorithms:
            raise Unauthenticated("the token's algorithm is not allowed")
        return self._verify(token, algorithm, await self._find(header.get("kid"), algorithm))

    async def _find(self, key_id: str | None, algorithm: str) -> Any:
        keys = self._source.keys
        key = keys.find(key_id, algorithm) if keys else None
        if key is None:
            await self._source.refresh()
            keys = self._source.keys
            if keys is None:
                raise IdentityUnavailable("the keys of the token's issuer cannot be fetched")
            key = keys.find(key_id, algorithm)
        if key is None:
            raise Unauthenticated("the token's key is unknown")
        return key

    def _verify(self, token: str, algorithm: str, key: Any) -> _Known:
        policy = self._policy
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=policy.audience,
                issuer=policy.issuer,
                leeway=policy.leeway_seconds,
                options={"require": _REQUIRED},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            why = _WHY.get(type(error), "the token is invalid")
            raise Unauthenticated(why) from None
        tenant = ""
        if policy.tenant_claim:
            tenant = claims.get(policy.tenant_claim, "")
            if not (isinstance(tenant, str) and tenant):
                raise Unauthenticated(f"the token has no claim {policy.tenant_claim}")
        identity = self._rules.identify(claims["sub"], tenant)
        if identity is None:
            raise Unauthenticated("no rule matches the token's subject")
        return _Known(identity, float(claims["exp"]) + policy.leeway_seconds)


def issuer_of(token: str) -> str:
    """Returns the issuer in a JWT, without a check of its signature. Raises ValueError."""
    try:
        issuer = jwt.decode(token.strip(), options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(issuer, str) and issuer):
        raise ValueError("the token has no iss")
    return issuer
