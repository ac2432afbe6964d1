"""An issuer of JSON Web Tokens for tests, and its key set."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://issuer.example", "ruvd"
_ALGORITHMS: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "PS256": jwt.algorithms.RSAPSSAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


class Issuer:
    """An issuer with one key, whose id is `key_id`."""

    def __init__(self, key_id: str = "k1", algorithm: str = "ES256") -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self._key: Any
        if algorithm == "ES256":
            self._key = ec.generate_private_key(ec.SECP256R1())
        elif algorithm == "EdDSA":
            self._key = ed25519.Ed25519PrivateKey.generate()
        else:
            self._key = rsa.generate_private_key(65537, 2048)

    @property
    def public_key(self) -> Any:
        return self._key.public_key()

    @property
    def jwk(self) -> dict[str, Any]:
        fields = _ALGORITHMS[self.algorithm].to_jwk(self.public_key, as_dict=True)
        return {**fields, "kid": self.key_id, "use": "sig"}

    def token(
        self,
        subject: str = "ada",
        *,
        headers: dict[str, Any] | None = None,
        seconds: float = 600.0,
        **claims: Any,
    ) -> str:
        """Returns a token that is valid for so many seconds; a claim that is None is left out."""
        now = time.time()
        fields = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "iat": int(now) - 1000,
            "exp": int(now + seconds),
            **claims,
        }
        payload = {name: each for name, each in fields.items() if each is not None}
        headers = {"kid": self.key_id, **(headers or {})}
        return jwt.encode(payload, self._key, self.algorithm, headers)


def key_set(*issuers: Issuer) -> bytes:
    """Returns the JSON Web Key Set with the keys of issuers."""
    return json.dumps({"keys": [issuer.jwk for issuer in issuers]}).encode()
