"""The security of the daemon's addresses: TLS, and who may call, as the settings ask for them.

Libraries are imported only for what is switched on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from ruvd.config.identities import NamedIdentity, parse
from ruvd.config.listening import ISSUER_OF_TOKEN_FILE
from ruvd.config.loader import Settings
from ruvd.config.tenant_limits import one_may_fill
from ruvd.core.ports.background import Run
from ruvd.core.ports.secrets import SecretSource
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.identity.caller import Identity, Role
from ruvd.rpc.identity.rules import IdentityRules
from ruvd.rpc.identity.tokens import TokenFile
from ruvd.rpc.watched_files import FilesInvalid, Reload, WatchedFiles, watch
from ruvd.server.background import BackgroundTasks

if TYPE_CHECKING:
    from ruvd.rpc.identity.web_tokens import JwtIdentities
    from ruvd.rpc.tls import ServerTls

_log = logging.getLogger("ruvd.daemon")


@dataclass(slots=True)
class Security:
    """TLS and identities, what has to be watched for them, and what has to run for them."""

    tls: "ServerTls | None" = None
    watched: list[WatchedFiles] = field(default_factory=list)
    fetched: list[SecretSource] = field(default_factory=list)
    tasks: dict[str, Run] = field(default_factory=dict)
    _callers: Authenticator | None = None

    def start(
        self, background: BackgroundTasks, on_reload: Callable[[Reload], None] | None = None
    ) -> None:
        """Starts what keeps certificates, tokens and keys up to date."""
        if self.watched:
            background.start("files", partial(watch, self.watched, on_reload))
        for name, run in self.tasks.items():
            background.start(name, run)

    @property
    def secrets(self) -> list[SecretSource]:
        """All files and URLs, to read them again."""
        return [*self.watched, *self.fetched]

    def callers(self, listener: NamedIdentity) -> Authenticator | None:
        """Returns the check of who calls at an address; None while all identity is off."""
        if self._callers is None or not listener.tenant:
            return self._callers
        identity = Identity(listener.tenant, Role(listener.role), listener.name, "socket")
        return replace(self._callers, socket=identity)


def build_security(settings: Settings) -> Security:
    """Reads the files for TLS and identities. Raises FilesInvalid if one cannot be used."""
    security = Security()
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        from ruvd.rpc.tls import ServerTls

        security.tls = ServerTls(
            settings.tls_cert_file, settings.tls_key_file, settings.client_ca_file
        )
        security.watched.append(security.tls.files)
    if settings.has_identity:
        security._callers = _build_callers(settings, security)  # noqa: SLF001  # its own module
    return security


def report_unlimited_tenants(settings: Settings) -> None:
    """Warns if a single tenant may have all sessions, as no tenant ever evicts another's."""
    limit = settings.max_sessions
    if settings.has_identity and one_may_fill(settings.tenant_limits, limit):
        _log.warning(
            "one tenant may have all sessions, and others get SESSION_LIMIT then: give every "
            "tenant max_sessions in tenant_limits",
            extra={"max_sessions": limit},
        )


def _build_callers(settings: Settings, security: Security) -> Authenticator:
    certificates = tokens = None
    if settings.certificates_identify:
        from ruvd.rpc.identity.certificates import CertificateIdentities

        certificates = CertificateIdentities(_rules(settings.client_identities, "certificate"))
    if settings.tokens_file is not None:
        tokens = TokenFile(settings.tokens_file)
        security.watched.append(tokens.files)
    web_tokens = _build_web_tokens(settings, security) if settings.jwt_issuer else None
    return Authenticator(certificates, tokens, web_tokens)


def _build_web_tokens(settings: Settings, security: Security) -> "JwtIdentities":
    from ruvd.rpc.identity.issuer_keys import KeyFile, KeyUrl
    from ruvd.rpc.identity.web_tokens import JwtIdentities, JwtPolicy

    source: KeyFile | KeyUrl
    if settings.jwt_jwks_file is not None:
        source = KeyFile(settings.jwt_jwks_file)
        security.watched.append(source.files)
    else:
        source = KeyUrl(
            settings.jwt_jwks_url, settings.jwt_jwks_ca_file, settings.jwt_jwks_token_file
        )
        security.fetched.append(source)
        security.tasks["keys of JWTs"] = source.run
    policy = JwtPolicy(
        _issuer(settings),
        settings.jwt_audience,
        settings.jwt_algorithms,
        settings.jwt_leeway_seconds,
        settings.jwt_tenant_claim,
    )
    return JwtIdentities(policy, _rules(settings.jwt_identities, "jwt"), source)


def _issuer(settings: Settings) -> str:
    """Returns the issuer of JWTs. Raises FilesInvalid if it is to be in a file that has none."""
    path = settings.jwt_jwks_token_file
    if settings.jwt_issuer != ISSUER_OF_TOKEN_FILE or path is None:
        return settings.jwt_issuer
    from ruvd.rpc.identity.web_tokens import issuer_of

    try:
        return issuer_of(path.read_text())
    except (OSError, ValueError) as error:
        raise FilesInvalid(f"jwt_issuer: {path} has no issuer: {error}") from None


def _rules(rules: Sequence[str], credential: str) -> IdentityRules:
    return IdentityRules((parse(rule) for rule in rules), credential)
