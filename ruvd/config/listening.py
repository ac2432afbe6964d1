"""The settings of the daemon's addresses: where it listens, TLS, and who may call there."""

from functools import partial
from typing import Literal, Self

from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings

from ruvd.config.addresses import check_listen, check_secure_url, is_loopback
from ruvd.config.fields import OptionalPath, Texts, setting
from ruvd.config.identities import NamedIdentity, parse_listen
from ruvd.config.identities import parse as parse_identity
from ruvd.config.tenant_limits import parse_limits

# Signatures with public keys only: a shared key could also make tokens.
_ALGORITHMS = [
    *(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)),
    "EdDSA",
]

# A value of jwt_issuer: the issuer of the daemon's own token.
ISSUER_OF_TOKEN_FILE = "token-file"  # noqa: S105  # no password

_listening = partial(setting, "Listening")
_identity = partial(setting, "Identity")


class ListeningSettings(BaseSettings):
    """The part of `Settings` for addresses and callers."""

    listen: Texts = _listening(
        ["127.0.0.1:50051"],
        "Address to listen on: host:port, unix:PATH, or unix:PATH;tenant=T;role=R for a socket "
        "whose callers are that tenant. May be given several times.",
    )
    allow_remote_insecure: bool = _listening(
        default=False,
        description="Allow addresses that other machines can reach and that lack TLS or identity.",
    )
    tls_cert_file: OptionalPath = _listening(
        None,
        "Certificate (PEM) of the TCP addresses in listen and http_listen, with its chain. It is "
        "read again when it changes. Unset: no TLS.",
    )
    tls_key_file: OptionalPath = _listening(
        None, "Unencrypted key (PEM) of the certificate in tls_cert_file."
    )
    client_ca_file: OptionalPath = _listening(
        None,
        "CA certificates (PEM). If it is set, a client at a TCP address needs a certificate that "
        "one of them has signed.",
    )

    client_identities: Texts = _identity(
        ["**"],
        "Rules PATTERN;tenant=T;role=R for the names in client certificates (URIs such as SPIFFE "
        "ids, otherwise hosts). An empty list: certificates do not identify callers.",
    )
    tokens_file: OptionalPath = _identity(
        None, "File with hashed bearer tokens, which `ruvd token create` makes."
    )
    jwt_issuer: str = _identity(
        "",
        "Issuer (iss) of JWTs that are accepted; token-file: that of the token in "
        "jwt_jwks_token_file, which is the cluster's in a pod of Kubernetes. Unset: none are.",
    )
    jwt_audience: str = _identity("", "Audience (aud) that a JWT must have.")
    jwt_jwks_file: OptionalPath = _identity(None, "File with the issuer's keys (JWKS).")
    jwt_jwks_url: str = _identity("", "URL (https) of the issuer's keys, instead of a file.")
    jwt_jwks_ca_file: OptionalPath = _identity(
        None, "CA certificates (PEM) to trust at jwt_jwks_url instead of the system's."
    )
    jwt_jwks_token_file: OptionalPath = _identity(
        None, "File with a bearer token to send to jwt_jwks_url, which Kubernetes asks for."
    )
    jwt_algorithms: Texts = _identity(
        ["RS256", "PS256", "ES256", "EdDSA"], "Signature algorithms that a JWT may have."
    )
    jwt_leeway_seconds: float = _identity(
        30.0, "Seconds that the issuer's clock may differ from this machine's.", ge=0, le=300
    )
    jwt_identities: Texts = _identity(
        ["**"], "Rules PATTERN;tenant=T;role=R for the subject (sub) of JWTs."
    )
    jwt_tenant_claim: str = _identity(
        "", "Claim of a JWT with its tenant, for rules without one. Unset: the subject."
    )

    tenant_limits: Texts = _identity(
        [],
        "Rules PATTERN;KEY=VALUE;... for the limits of tenants. Keys: max_sessions, "
        "max_stored_bytes, max_inflight, tokens_per_minute, weight (share of the slots, 1 by "
        "default), max_output_tokens, max_schema_bytes, max_answer_bytes, and the lists models, "
        "extra_body and tools, with bars between their items. The first rule that matches counts.",
    )
    at_session_limit: Literal["evict", "refuse"] = _identity(
        "evict",
        "What happens when a tenant has max_sessions of its own: its least recently used session "
        "is evicted, or a new one is refused.",
    )

    http_listen: str = _listening(
        "",
        "Address of OpenAI's API over HTTP: host:port, unix:PATH, or unix:PATH;tenant=T;role=R. "
        "Unset: none.",
    )
    admin_listen: str = _listening(
        "auto",
        "Socket for administration, which only this user can open: unix:PATH, none, or auto for "
        "STORE-admin.sock beside the store's file or admin.sock in the user's state directory.",
    )
    metrics_listen: str = _listening(
        "", "Address of the Prometheus endpoint, host:port on loopback. Unset: none."
    )
    console_listen: str = _listening(
        "",
        "Address of the console, pages for a browser that show sessions, streams and health: "
        "host:port. Read-only; with TLS and identity as at the TCP addresses in listen. Unset: "
        "none.",
    )
    health_listen: str = _listening(
        "", "Address for health probes only, host:port; it may be remote. Unset: none."
    )

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            check_listen(parse_listen(address).name)
        if not value:
            raise ValueError("at least one address is needed")
        return value

    @field_validator("metrics_listen", "health_listen", "console_listen")
    @classmethod
    def _port_address(cls, value: str) -> str:
        if value.startswith("unix:"):
            raise ValueError("must be host:port")
        if value:
            check_listen(value)
        return value

    @field_validator("http_listen")
    @classmethod
    def _http_address(cls, value: str) -> str:
        if value:
            check_listen(parse_listen(value).name)
        return value

    @field_validator("admin_listen")
    @classmethod
    def _admin_socket(cls, value: str) -> str:
        if value not in ("auto", "none", ""):
            if not value.startswith("unix:"):
                raise ValueError("must be unix:PATH, auto or none")
            check_listen(value)
        return value

    @field_validator("client_identities", "jwt_identities")
    @classmethod
    def _rules(cls, value: list[str]) -> list[str]:
        for rule in value:
            parse_identity(rule)
        return value

    @field_validator("tenant_limits")
    @classmethod
    def _limits(cls, value: list[str]) -> list[str]:
        for rule in value:
            parse_limits(rule)
        return value

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms(cls, value: list[str]) -> list[str]:
        if not value or set(value) - set(_ALGORITHMS):
            raise ValueError(f"must be some of {', '.join(_ALGORITHMS)}")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _keys_url(cls, value: str) -> str:
        if value:
            check_secure_url(value)
        return value

    @model_validator(mode="after")
    def _check_listening(self) -> Self:
        self._check_remote()
        taken = [each.name for each in (*self.listeners, *self.http_listeners)]
        if self.admin_listen in taken:
            raise ValueError("admin_listen must be another socket than those of listen")
        own = [each.name for each in self.listeners]
        if any(each.name in own and not each.name.endswith(":0") for each in self.http_listeners):
            raise ValueError("http_listen must be another address than those of listen")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file need each other")
        if self.client_ca_file and not self.tls_cert_file:
            raise ValueError("client_ca_file needs tls_cert_file")
        if self.jwt_issuer and not self.jwt_audience:
            raise ValueError("jwt_issuer needs jwt_audience")
        if bool(self.jwt_issuer) != bool(self.jwt_jwks_file or self.jwt_jwks_url):
            raise ValueError("jwt_issuer needs jwt_jwks_file or jwt_jwks_url, and they need it")
        if self.jwt_issuer == ISSUER_OF_TOKEN_FILE and not self.jwt_jwks_token_file:
            raise ValueError(f"jwt_issuer {ISSUER_OF_TOKEN_FILE} needs jwt_jwks_token_file")
        if self.jwt_jwks_file and self.jwt_jwks_url:
            raise ValueError("jwt_jwks_file and jwt_jwks_url exclude each other")
        return self

    def _check_remote(self) -> None:
        """Raises ValueError for an address that other machines can reach and must not."""
        if self.allow_remote_insecure:
            return
        addresses = (*self.listeners, *self.http_listeners)
        remote = [each.name for each in addresses if not is_loopback(each.name)]
        if remote and not (self.tls_cert_file and self.has_identity):
            raise ValueError(
                f"listen, http_listen: {', '.join(remote)} is not loopback and needs TLS "
                "(tls_cert_file) and an identity of callers (client_ca_file, tokens_file or "
                "jwt_issuer); set allow_remote_insecure to listen there without"
            )
        if (
            self.console_listen
            and not is_loopback(self.console_listen)
            and not (self.tls_cert_file and self.has_identity)
        ):
            raise ValueError(
                f"console_listen: {self.console_listen} is not loopback and needs TLS "
                "(tls_cert_file) and an identity of callers (client_ca_file, tokens_file or "
                "jwt_issuer); set allow_remote_insecure to listen there without"
            )
        if self.metrics_listen and not is_loopback(self.metrics_listen):
            raise ValueError(
                f"metrics_listen: {self.metrics_listen} is not loopback, and the endpoint has "
                "neither TLS nor identity; set allow_remote_insecure to listen there anyway"
            )

    @property
    def listeners(self) -> list[NamedIdentity]:
        """The addresses to listen at, each with the tenant and role of a socket's callers."""
        return [parse_listen(address) for address in self.listen]

    @property
    def http_listeners(self) -> list[NamedIdentity]:
        """The HTTP addresses, each with the tenant and role of a socket's callers."""
        return [parse_listen(self.http_listen)] if self.http_listen else []

    @property
    def certificates_identify(self) -> bool:
        """Whether client certificates say who calls."""
        return self.client_ca_file is not None and bool(self.client_identities)

    @property
    def has_identity(self) -> bool:
        """Whether every call needs an identity."""
        named_sockets = any(each.tenant for each in (*self.listeners, *self.http_listeners))
        tokens = self.tokens_file is not None or bool(self.jwt_issuer)
        return named_sockets or tokens or self.certificates_identify
