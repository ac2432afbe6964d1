"""JSON Web Tokens: what is accepted, what is refused, and keys that change."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from answers import http
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from upstream import Upstream
from web_tokens import AUDIENCE, ISSUER, Issuer, key_set

from ruvd.core.errors import IdentityUnavailable, Unauthenticated
from ruvd.core.ports.secrets import SecretOutcome
from ruvd.rpc.identity.caller import Identity, Role
from ruvd.rpc.identity.issuer_keys import KeySet, KeyUrl
from ruvd.rpc.identity.rules import IdentityRules
from ruvd.rpc.identity.web_tokens import JwtIdentities, JwtPolicy, issuer_of

POLICY = JwtPolicy(ISSUER, AUDIENCE, ["RS256", "PS256", "ES256", "EdDSA"], 0.0, "")
ALL = [("**", "", "user")]


class Keys:
    """Keys that a test sets; `later` are those after a refresh."""

    def __init__(self, *issuers: Issuer) -> None:
        self.keys: KeySet | None = KeySet(key_set(*issuers)) if issuers else None
        self.later: KeySet | None = None
        self.refreshes = 0

    async def refresh(self) -> None:
        self.refreshes += 1
        self.keys = self.later or self.keys


def identities(keys: Keys, policy: JwtPolicy = POLICY, rules: Any = ALL) -> JwtIdentities:
    return JwtIdentities(policy, IdentityRules(rules), keys)


def forged(token: str, **header: Any) -> str:
    """Returns a token with another header and no signature."""
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{head}.{token.split('.')[1]}."


ISSUERS = {name: Issuer(algorithm=name) for name in ("RS256", "PS256", "ES256", "EdDSA")}
GOOD = ISSUERS["ES256"]


@pytest.mark.parametrize("algorithm", ISSUERS)
async def test_a_good_token_gives_its_subject_as_the_tenant(algorithm: str) -> None:
    issuer = ISSUERS[algorithm]
    checked = identities(Keys(issuer))
    assert await checked.identify(issuer.token("ada")) == Identity("ada", Role.USER, "ada")


def _signed_with_the_public_key() -> str:
    secret = GOOD.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body, _ = forged(GOOD.token(), alg="HS256", kid="k1", typ="JWT").split(".")
    signature = hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _changed() -> str:
    head, _, signature = GOOD.token().split(".")
    body = GOOD.token("mallory").split(".")[1]
    return f"{head}.{body}.{signature}"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (lambda: GOOD.token(seconds=-1), "has expired"),
        (lambda: GOOD.token(exp=None), "is invalid"),
        (lambda: GOOD.token(nbf=int(time.time()) + 600), "not valid yet"),
        (lambda: GOOD.token(aud="another"), "another audience"),
        (lambda: GOOD.token(aud=None), "is invalid"),
        (lambda: GOOD.token(iss="https://evil.example"), "another issuer"),
        (lambda: GOOD.token(iss=None), "is invalid"),
        (lambda: GOOD.token(sub=None), "is invalid"),
        (lambda: GOOD.token(sub=""), "no rule matches"),
        (lambda: GOOD.token("two words"), "no rule matches"),
        (lambda: GOOD.token(headers={"crit": ["exp"]}), "nor a valid JWT"),
        (lambda: GOOD.token(headers={"kid": "another"}), "key is unknown"),
        (lambda: Issuer().token(), "signature is wrong"),
        (lambda: Issuer(algorithm="EdDSA").token(), "key is unknown"),
        (_changed, "signature is wrong"),
        (lambda: forged(GOOD.token(), alg="none"), "algorithm is not allowed"),
        (lambda: forged(GOOD.token(), alg="None"), "algorithm is not allowed"),
        (lambda: forged(GOOD.token(), kid="k1"), "algorithm is not allowed"),
        (lambda: forged(GOOD.token(), alg="ES256", kid="k1"), "signature is wrong"),
        (_signed_with_the_public_key, "algorithm is not allowed"),
        (lambda: "nonsense", "nor a valid JWT"),
        (lambda: "a.b.c", "nor a valid JWT"),
        (lambda: "ä.ö.ü", "nor a valid JWT"),
    ],
)
async def test_a_wrong_token_is_refused(token: Any, why: str) -> None:
    checked = identities(Keys(GOOD))
    await checked.identify(GOOD.token())
    for _ in range(2):
        with pytest.raises(Unauthenticated, match=why):
            await checked.identify(token())


async def test_a_token_expires_although_it_is_known() -> None:
    checked = identities(Keys(GOOD))
    token = GOOD.token(seconds=1.5)
    await checked.identify(token)
    deadline = time.monotonic() + 60
    with pytest.raises(Unauthenticated, match="expired"):
        while time.monotonic() < deadline:
            await checked.identify(token)
            await asyncio.sleep(0.1)


async def test_the_clocks_may_differ_by_the_leeway() -> None:
    checked = identities(Keys(GOOD), POLICY._replace(leeway_seconds=300))
    assert await checked.identify(GOOD.token(seconds=-100))
    assert await checked.identify(GOOD.token(nbf=int(time.time()) + 100))
    with pytest.raises(Unauthenticated, match="expired"):
        await checked.identify(GOOD.token(seconds=-400))


async def test_an_algorithm_has_to_be_allowed() -> None:
    issuer = ISSUERS["RS256"]
    checked = identities(Keys(issuer), POLICY._replace(algorithms=["ES256"]))
    with pytest.raises(Unauthenticated, match="algorithm is not allowed"):
        await checked.identify(issuer.token())


async def test_rules_and_a_claim_give_the_tenant_and_the_role() -> None:
    rules = [("system:serviceaccount:prod:*", "prod", "admin"), ("user-*", "", "reader")]
    policy = POLICY._replace(tenant_claim="org")
    checked = identities(Keys(GOOD), policy, rules)
    account = await checked.identify(GOOD.token("system:serviceaccount:prod:web", org="o"))
    assert (account.tenant, account.role) == ("prod", Role.ADMIN)
    user = await checked.identify(GOOD.token("user-1", org="acme"))
    assert (user.tenant, user.role) == ("acme", Role.READER)
    for wrong in (GOOD.token("user-1"), GOOD.token("user-1", org=7), GOOD.token("root", org="o")):
        with pytest.raises(Unauthenticated):
            await checked.identify(wrong)


async def test_an_unknown_key_id_is_looked_up_again() -> None:
    keys, second = Keys(GOOD), Issuer("k2")
    keys.later = KeySet(key_set(second))
    checked = identities(keys)
    token = GOOD.token()
    await checked.identify(token)
    assert keys.refreshes == 0
    assert await checked.identify(second.token())
    assert keys.refreshes == 1
    with pytest.raises(Unauthenticated, match="key is unknown"):
        await checked.identify(token)  # its key is gone, and what was known of it with the key


async def test_without_any_keys_a_token_can_be_tried_again_later() -> None:
    keys = Keys()
    with pytest.raises(IdentityUnavailable):
        await identities(keys).identify(GOOD.token())
    assert keys.refreshes == 1


def test_a_key_set_takes_only_public_keys_for_signatures() -> None:
    symmetric = {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}
    encryption = {**GOOD.jwk, "use": "enc", "kid": "e"}
    unknown = {"kty": "EC", "crv": "P-999", "kid": "u"}
    keys = KeySet(json.dumps({"keys": [symmetric, encryption, unknown, GOOD.jwk]}).encode())
    assert keys.find("k1", "ES256")
    assert not any(keys.find(each, "ES256") for each in ("s", "e", "u"))
    for content in (b"", b"[]", b'{"keys": 1}', b'{"keys": [1]}', b"[" * 100_000):
        with pytest.raises(ValueError, match="is not a JSON Web Key Set"):
            KeySet(content)
    with pytest.raises(ValueError, match="no public key"):
        KeySet(json.dumps({"keys": [symmetric]}).encode())


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    server = Upstream()
    server.lookup = lambda _: http(key_set(GOOD))
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def fetching(source: KeyUrl) -> AsyncIterator[JwtIdentities]:
    task = asyncio.create_task(source.run())
    try:
        yield JwtIdentities(POLICY, IdentityRules(ALL), source)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_keys_are_fetched_from_a_url_with_a_token(server: Upstream, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("secret\n")
    async with fetching(KeyUrl(server.url, None, token_file)) as checked:
        assert await checked.identify(GOOD.token())
    assert server.lookups[0].headers["authorization"] == "Bearer secret"


async def test_an_unknown_key_id_causes_a_fetch_and_many_of_them_few(server: Upstream) -> None:
    second = Issuer("k2")
    async with fetching(KeyUrl(server.url, None, None, rest_seconds=0.2)) as checked:
        await checked.identify(GOOD.token())
        server.lookup = lambda _: http(key_set(GOOD, second))
        async with asyncio.timeout(60):
            while True:
                if await accepted(checked, second.token()):
                    break
                await asyncio.sleep(0.05)
    async with fetching(KeyUrl(server.url, None, None, rest_seconds=60)) as checked:
        await checked.identify(GOOD.token())
        fetches = len(server.lookups)
        for number in range(200):
            assert not await accepted(checked, GOOD.token(headers={"kid": f"invented{number}"}))
        assert len(server.lookups) == fetches


async def accepted(checked: JwtIdentities, token: str) -> bool:
    try:
        await checked.identify(token)
    except Unauthenticated:
        return False
    return True


@pytest.mark.parametrize(
    "answer",
    [
        lambda: http(b"no keys"),
        lambda: http(b"", status="404 Not Found"),
        lambda: http(b"", status="302 Found", headers={"Location": "http://127.0.0.1:1/"}),
        lambda: http(b" " * (2 << 20)),
    ],
    ids=["no key set", "404", "redirect", "too large"],
)
async def test_the_last_keys_stay_while_a_fetch_fails(
    server: Upstream, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with fetching(KeyUrl(server.url, None, None, rest_seconds=0.0)) as checked:
        await checked.identify(GOOD.token())
        server.lookup = lambda _: answer()
        fetches = len(server.lookups)
        assert not await accepted(checked, GOOD.token(headers={"kid": "another"}))
        await server.until(lambda: len(server.lookups) > fetches, 60)
        async with asyncio.timeout(60):
            while True:
                if caplog.records:
                    break
                await asyncio.sleep(0.05)
        assert await accepted(checked, GOOD.token("bob"))
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("ruvd.daemon", "ERROR")
    ]


async def test_keys_of_a_url_are_reloaded_at_once_and_a_failure_says_why(server: Upstream) -> None:
    second = Issuer("k2")
    source = KeyUrl(server.url, None, None, rest_seconds=600)

    async def reloaded() -> tuple[SecretOutcome, str]:
        (result,) = await source.reload()
        assert (result.setting, result.location) == ("jwt_jwks_url", server.url)
        return result.outcome, result.error

    async with fetching(source) as checked:
        await checked.identify(GOOD.token())
        assert await reloaded() == (SecretOutcome.UNCHANGED, "")
        server.lookup = lambda _: http(key_set(second))
        assert await reloaded() == (SecretOutcome.TAKEN, "")
        assert await accepted(checked, second.token())
        assert not await accepted(checked, GOOD.token()), "the key was taken out"
        server.lookup = lambda _: http(b"", status="404 Not Found")
        assert await reloaded() == (SecretOutcome.REFUSED, "HTTP status 404")
        assert await accepted(checked, second.token())


async def test_an_issuer_that_is_down_at_the_start_is_asked_again(server: Upstream) -> None:
    await server.stop()
    async with fetching(KeyUrl(server.url, None, None, rest_seconds=0.05)) as checked:
        with pytest.raises(IdentityUnavailable):
            await checked.identify(GOOD.token())
        await server.start()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await checked.identify(GOOD.token())
                    break
                except IdentityUnavailable:
                    await asyncio.sleep(0.05)


def test_the_issuer_of_a_token_is_read_without_its_key() -> None:
    assert issuer_of(f"{GOOD.token()}\n") == ISSUER
    assert issuer_of(GOOD.token(seconds=-9999)) == ISSUER
    for wrong in ("", "a.b.c", GOOD.token(iss=None), GOOD.token(iss="")):
        with pytest.raises(ValueError):  # noqa: PT011  # the text is mostly the library's
            issuer_of(wrong)
