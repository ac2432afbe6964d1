"""Tokens, certificates, rules and the table of permissions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection

from ruvd.admin.v1 import admin_service_pb2
from ruvd.config import identities
from ruvd.core.errors import PermissionDenied, Unauthenticated
from ruvd.rpc.identity import caller, permissions, tokens
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.identity.caller import Identity, Role
from ruvd.rpc.identity.certificates import CertificateIdentities
from ruvd.rpc.identity.rules import IdentityRules
from ruvd.rpc.identity.tokens import TokenFile
from ruvd.rpc.watched_files import FilesInvalid
from ruvd.v1 import session_service_pb2

LIST = "/ruvd.v1.SessionService/ListSessions"
COMPLETE = "/ruvd.v1.SessionService/Complete"
SPIFFE = "spiffe://example.org/ns/prod/sa/web"


def token_file(path: Path, *lines: str) -> TokenFile:
    path.write_text("".join(f"{line}\n" for line in lines))
    return TokenFile(path)


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("authorization", f"Bearer {token}")]


def auth_context(certificate: bytes) -> dict[str, list[bytes]]:
    return {"x509_pem_cert": [certificate]}


def test_every_rpc_is_in_the_table_of_permissions_and_no_other() -> None:
    files = (session_service_pb2.DESCRIPTOR, admin_service_pb2.DESCRIPTOR)
    services = [each.full_name for file in files for each in file.services_by_name.values()]
    pool = descriptor_pool.Default()
    expected = {
        f"/{service}/{method.name}"
        for service in (*services, reflection.SERVICE_NAME)
        for method in pool.FindServiceByName(service).methods
    }
    assert set(permissions.ROLES) == expected


def test_only_admins_may_administer() -> None:
    for method, roles in permissions.ROLES.items():
        if method.startswith("/ruvd.admin."):
            assert roles == {Role.ADMIN}, method


@pytest.mark.parametrize("role", Role)
def test_an_rpc_that_is_not_in_the_table_is_allowed_to_nobody(role: Role) -> None:
    with pytest.raises(PermissionDenied):
        permissions.check("/ruvd.v1.SessionService/Invented", Identity("a", role))


def test_a_reader_may_call_nothing_that_needs_or_gives_content() -> None:
    allowed = {
        method.rpartition("/")[2]
        for method, roles in permissions.ROLES.items()
        if Role.READER in roles
    }
    assert allowed == {
        "GetSession",
        "ListSessions",
        "GetServerInfo",
        "GetSessionMetrics",
        "ListModels",
        "ServerReflectionInfo",
    }


def test_the_settings_know_the_same_roles() -> None:
    assert tuple(role.value for role in Role) == identities.ROLES


def test_a_token_is_known_by_its_line_until_that_is_taken_out(tmp_path: Path) -> None:
    first, line = tokens.create("acme", Role.ADMIN)
    second, other_line = tokens.create("other", Role.USER)
    assert first not in line
    known = token_file(tmp_path / "tokens", "# comment", "", line, other_line + " note=x#y")
    identity = known.identify(first)
    assert (identity.tenant, identity.role) == ("acme", Role.ADMIN)
    assert known.identify(second).tenant == "other"
    (tmp_path / "tokens").write_text(other_line)
    known.files.check()
    known.files.check()
    with pytest.raises(Unauthenticated, match="revoked"):
        known.identify(first)
    assert known.identify(second).tenant == "other"
    for wrong in ("", "ruvd_", second[:-1], second + "a", second.upper()):
        with pytest.raises(Unauthenticated):
            known.identify(wrong)


HASH = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ruvd_secret tenant=a", "does not begin with sha256:"),
        (HASH, "has no tenant"),
        (f"{HASH} tenant=", "has no tenant"),
        (f"{HASH} tenant=ä", "has no tenant"),
        (f"{HASH} tenant=a role=root", "'root' is not one of user, reader, admin"),
        (f"{HASH} tenant=a rle=reader", "'rle' is not one of"),
        (f"{HASH} tenant=a\n{HASH} tenant=b", "3: the token is on another line"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(FilesInvalid, match=f"tokens_file: line .*{why}") as caught:
        token_file(tmp_path / "tokens", "", line)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("spiffe://example.org/ns/*/sa/web", SPIFFE, True),
        ("spiffe://example.org/ns/*/web", SPIFFE, False),
        ("spiffe://example.org/*", SPIFFE, False),
        ("spiffe://example.org/**", SPIFFE, True),
        ("spiffe://example.org/**", "spiffe://example.org.evil/ns", False),
        ("spiffe://example.org/ns/prod/sa/we", SPIFFE, False),
        ("spiffe://example-org/**", SPIFFE, False),
        ("spiffe://example.org/[a-z]+", "spiffe://example.org/a", False),
        ("**", "a\nb", False),
        ("*", "ada", True),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, name: str, matches: bool) -> None:  # noqa: FBT001
    identity = IdentityRules([(pattern, "", "user")]).identify(name)
    assert identity == (Identity(name, Role.USER, name) if matches else None)


@pytest.mark.parametrize("name", ["", "two words", "ä", "a\0", "a" * 256])
def test_a_name_that_cannot_be_a_tenant_needs_a_rule_with_one(name: str) -> None:
    assert IdentityRules([("**", "", "user")]).identify(name) is None
    assert IdentityRules([("**", "acme", "user")]).identify(name) is not None


def test_a_certificate_is_known_by_its_uri_or_else_by_its_hosts() -> None:
    authority = Authority()
    rules = [(SPIFFE, "", "user"), ("*.example.org", "hosts", "reader")]
    known = CertificateIdentities(IdentityRules(rules))
    both = known.identify(auth_context(authority.issue(SPIFFE, "a.example.org")[0]))
    assert both == Identity(SPIFFE, Role.USER, SPIFFE)
    host = known.identify(auth_context(authority.issue("x", "a.example.org")[0]))
    assert host == Identity("hosts", Role.READER, "a.example.org")
    assert known.identify({}) is None
    for names in ((), ("spiffe://evil.org/x", "a.example.org"), ("x.y",)):
        with pytest.raises(Unauthenticated, match="no rule matches"):
            known.identify(auth_context(authority.issue(*names)[0]))
    with pytest.raises(Unauthenticated, match="expired"):
        known.identify(auth_context(authority.issue(SPIFFE, days=-1)[0]))


async def test_a_wrong_credential_never_falls_back_to_another_kind(tmp_path: Path) -> None:
    token, line = tokens.create("acme", Role.USER)
    socket = Identity("socket")
    certificates = CertificateIdentities(IdentityRules([(SPIFFE, "", "user")]))
    known = await asyncio.to_thread(token_file, tmp_path / "tokens", line)
    callers = Authenticator(certificates, known, None, socket)
    own, foreign = (auth_context(Authority().issue(name)[0]) for name in (SPIFFE, "x.y"))

    async def who(metadata: list[tuple[str, str | bytes]], connection: Any) -> str:
        await callers.admit(LIST, metadata)
        callers.admit_call(LIST, connection)
        identity = caller.current.get()
        assert identity is not None
        return identity.tenant

    assert await who([], {}) == "socket"
    assert await who(bearer(token), {}) == "acme"
    assert await who([], own) == SPIFFE
    assert await who(bearer(token), own) == SPIFFE, "the certificate goes first"
    wrong: list[list[tuple[str, str | bytes]]] = [
        bearer("ruvd_wrong"),
        bearer("a.b.c"),
        bearer(""),
        [("authorization", f"Basic {token}")],
        [("authorization", token)],
        [*bearer(token), *bearer(token)],
        [("authorization", "Bearer ruvd_" + "a" * 100_000)],
    ]
    for metadata in wrong:
        for connection in ({}, own):
            with pytest.raises(Unauthenticated):
                await who(metadata, connection)
    with pytest.raises(Unauthenticated):
        await who(bearer(token), foreign)


async def test_a_role_is_checked_at_once_without_certificates_and_at_the_call_with_them() -> None:
    reader = Identity("a", Role.READER)
    await Authenticator(socket=reader).admit(LIST, [])
    with pytest.raises(PermissionDenied, match="the role reader may not call Complete"):
        await Authenticator(socket=reader).admit(COMPLETE, [])
    with pytest.raises(Unauthenticated, match="no credential"):
        await Authenticator().admit(LIST, [])
    certificates = CertificateIdentities(IdentityRules([("**", "", "reader")]))
    callers = Authenticator(certificates)
    await callers.admit(COMPLETE, [])
    with pytest.raises(PermissionDenied):
        callers.admit_call(COMPLETE, auth_context(Authority().issue(SPIFFE)[0]))
    await callers.admit(COMPLETE, [])
    with pytest.raises(Unauthenticated, match="no credential"):
        callers.admit_call(COMPLETE, {})
