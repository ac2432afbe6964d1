"""The clients of all languages with tokens and TLS, by `PROGRAM identity` of CONFORMANCE.md."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from certificates import Files
from running import RunningDaemon, StartDaemon, clean_environment

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role

CLIENTS = Path(__file__).parents[2] / "clients"
LANGUAGES = ["go", "typescript", "java", "rust"]
FLAVOURS = [
    "python",
    "python --asyncio",
    *(pytest.param(language, marks=pytest.mark.languages) for language in LANGUAGES),
]
SECONDS = 15.0
CALLS = ("models", "complete", "resume", "cancel", "batch")
ANSWERED = ["models ok", "complete [one two]", "resume [one two]", "cancel ok", "batch [three]"]
REFUSED = [f"{call} error UNAUTHENTICATED UNAUTHENTICATED" for call in CALLS]
NO_TOKEN = [f"{call} error UNAUTHENTICATED -" for call in CALLS]
WAYS = ["environment", "value", "file", "function"]
pytestmark = pytest.mark.timeout(300)


class Program:
    """A running conformance program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._names = itertools.count(1)

    async def calls(self) -> list[str]:
        """Lets the program make its calls and returns their results."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"s{next(self._names)}\n".encode())
        async with asyncio.timeout(SECONDS):
            return [(await self._process.stdout.readline()).decode().strip() for _ in CALLS]


def command(flavour: str, way: str) -> list[str]:
    language, *options = flavour.split()
    return [str(CLIENTS / language / "run"), "conformance", *options, "identity", way]


@asynccontextmanager
async def program(
    flavour: str, way: str, variables: Mapping[str, object]
) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *command(flavour, way),
        env={**clean_environment(), **{key: str(value) for key, value in variables.items()}},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
        async with asyncio.timeout(SECONDS):
            output, errors = await process.communicate(b"")
        assert (output, errors, process.returncode) == (b"", b"", 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def created(flavour: str, way: str, variables: Mapping[str, object]) -> bool:
    """Tells whether the program could create its client; it makes no calls."""
    done = await asyncio.to_thread(
        subprocess.run,
        command(flavour, way),
        env={**clean_environment(), **{key: str(value) for key, value in variables.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout in ("", "refused\n")
    return not done.stdout


@dataclass
class Secrets:
    """The file of the daemon's tokens, a file with one of them, and certificates."""

    tokens: Path
    file: Path
    tls: Files

    @property
    def token(self) -> str:
        return self.file.read_text().strip()


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    hashes, file = tmp_path / "tokens", tmp_path / "token"
    token, line = tokens.create("acme", Role.USER)
    hashes.write_text(f"{line}\n")
    file.write_text(f"{token}\n")
    return Secrets(hashes, file, Files(tmp_path))


@pytest_asyncio.fixture
async def plain(daemon: StartDaemon, secrets: Secrets) -> AsyncIterator[RunningDaemon]:
    """A daemon that wants a token."""
    async with daemon("--engine", "echo", "--tokens-file", str(secrets.tokens)) as running:
        yield running


@pytest_asyncio.fixture
async def encrypted(daemon: StartDaemon, secrets: Secrets) -> AsyncIterator[RunningDaemon]:
    """A daemon that wants a token, and on TCP a client certificate that stands for nobody."""
    flags = ("--engine", "echo", "--tokens-file", str(secrets.tokens), *secrets.tls.flags)
    settings = secrets.tls.folder / "ruvd.toml"
    await asyncio.to_thread(settings.write_text, "client_identities = []\n")
    mutual = ("--client-ca-file", str(secrets.tls.ca), "--config", str(settings))
    async with daemon(*flags, *mutual) as running:
        yield running


def tls_variables(secrets: Secrets, prefix: str) -> dict[str, object]:
    certificate, key = secrets.tls.issue("client", "spiffe://example.org/client")
    return {
        f"{prefix}_TLS_CA_FILE": secrets.tls.ca,
        f"{prefix}_TLS_CLIENT_CERT_FILE": certificate,
        f"{prefix}_TLS_CLIENT_KEY_FILE": key,
        f"{prefix}_TLS_SERVER_NAME": "localhost",
    }


def variables(address: str, secrets: Secrets, way: str) -> dict[str, object]:
    """Returns the variables with the address and the token."""
    if way == "value":
        return {"TEST_ADDRESS": address, "TEST_TOKEN": secrets.token}
    prefix = "RUVD" if way == "environment" else "TEST"
    return {f"{prefix}_ADDRESS": address, f"{prefix}_TOKEN_FILE": secrets.file}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_every_call_of_a_client_has_its_token_and_certificate(
    encrypted: RunningDaemon, secrets: Secrets, flavour: str, way: str
) -> None:
    tls = tls_variables(secrets, "RUVD" if way == "environment" else "TEST")
    settings = {**variables(encrypted.address, secrets, way), **tls}
    async with program(flavour, way, settings) as running:
        assert await running.calls() == ANSWERED


@pytest.mark.parametrize("way", ["environment", "file", "function"])
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_renewed_token_is_used_by_the_next_call(
    plain: RunningDaemon, secrets: Secrets, flavour: str, way: str
) -> None:
    token = secrets.token
    secrets.file.write_text("wrong")
    async with program(flavour, way, variables(plain.address, secrets, way)) as running:
        assert await running.calls() == REFUSED
        secrets.file.write_text(f"\n{token}\r\n")
        assert await running.calls() == ANSWERED
        secrets.file.write_text("two words")
        assert await running.calls() == NO_TOKEN
        secrets.file.unlink()
        assert await running.calls() == NO_TOKEN
        secrets.file.write_text(token)
        assert await running.calls() == ANSWERED


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_token_in_the_environment_is_used_if_the_caller_gives_none(
    plain: RunningDaemon, secrets: Secrets, flavour: str
) -> None:
    """An empty variable counts as unset, and an empty value of the caller's means no token."""
    settings = {
        "RUVD_ADDRESS": plain.address,
        "RUVD_TOKEN": secrets.token,
        "RUVD_TOKEN_FILE": "",
        "TEST_ADDRESS": plain.address,
        "TEST_TOKEN": "",
    }
    async with program(flavour, "environment", settings) as running:
        assert await running.calls() == ANSWERED
    async with program(flavour, "value", settings) as running:
        assert await running.calls() == REFUSED


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_unix_socket_has_no_tls_whatever_is_set(
    encrypted: RunningDaemon, secrets: Secrets, flavour: str
) -> None:
    for way, prefix in (("environment", "RUVD"), ("file", "TEST")):
        tls = tls_variables(secrets, prefix)
        settings = {**variables(encrypted.socket, secrets, way), **tls}
        async with program(flavour, way, settings) as running:
            assert await running.calls() == ANSWERED


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_each_address_of_a_list_has_the_token_and_its_own_tls(
    encrypted: RunningDaemon, secrets: Secrets, flavour: str
) -> None:
    """The socket has no TLS, and the name in the certificate is that of the other address."""
    tls = tls_variables(secrets, "RUVD")
    del tls["RUVD_TLS_SERVER_NAME"]
    name = encrypted.address.replace("127.0.0.1", "localhost")
    nobody = f"unix:{encrypted.folder}/nobody.sock"
    for addresses in (f"{nobody}, {name}", f"localhost:1, {encrypted.socket}"):
        settings = {**variables(addresses, secrets, "environment"), **tls}
        async with program(flavour, "environment", settings) as running:
            assert await running.calls() == ANSWERED
    # The daemon at the first address does not have the name of that address.
    wrong = {**tls, "RUVD_TLS_SERVER_NAME": "elsewhere.example.org"}
    settings = {**variables(f"{name}, {encrypted.socket}", secrets, "environment"), **wrong}
    async with program(flavour, "environment", settings) as running:
        assert await running.calls() == ANSWERED


ADDRESSES = {
    **dict.fromkeys(
        ("localhost:1", "LocalHost:1", "127.0.0.1:1", "127.255.3.4:1", "[::1]:1"), True
    ),
    **dict.fromkeys(("unix:/run/nobody.sock", "unix:///run/nobody.sock"), True),
    **dict.fromkeys(("192.0.2.1:1", "128.0.0.1:1", "example.org:1", "[2001:db8::1]:1"), False),
    **dict.fromkeys(("localhost.example.org:1", "127.0.0.1.example.org:1", "0.0.0.0:1"), False),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_token_never_leaves_the_machine_in_plain_text(
    secrets: Secrets, flavour: str
) -> None:
    for address, is_local in ADDRESSES.items():
        settings = {"TEST_ADDRESS": address, "TEST_TOKEN": secrets.token}
        assert await created(flavour, "value", settings) is is_local, address
    remote = {"TEST_ADDRESS": "192.0.2.1:1", "TEST_TOKEN_FILE": secrets.file}
    assert not await created(flavour, "function", remote)
    assert await created(flavour, "file", {**remote, "TEST_TLS_CA_FILE": secrets.tls.ca})
    assert await created(flavour, "value", {**remote, "TEST_TOKEN": ""})
    remote = {"RUVD_ADDRESS": "192.0.2.1:1", "RUVD_TOKEN_FILE": secrets.file}
    assert not await created(flavour, "environment", remote)
    assert await created(flavour, "environment", {**remote, "RUVD_TLS_CA_FILE": secrets.tls.ca})


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_wrong_settings_are_an_error_when_the_client_is_created(
    secrets: Secrets, flavour: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    local = {"TEST_ADDRESS": "127.0.0.1:1", "TEST_TOKEN": "secret"}
    certificate, key = secrets.tls.issue("client", "spiffe://example.org/client")
    wrong: Sequence[dict[str, object]] = [
        {"TEST_TOKEN": "two words"},
        {"TEST_TOKEN": "two\nlines"},
        {"TEST_TOKEN": "schlüssel"},
        {"TEST_TOKEN": " "},
        {"TEST_TLS_CA_FILE": "/nowhere/ca.pem"},
        {"TEST_TLS_CA_FILE": empty},
        {"TEST_TLS_CA_FILE": secrets.tls.ca, "TEST_TLS_CLIENT_CERT_FILE": certificate},
        {"TEST_TLS_CA_FILE": secrets.tls.ca, "TEST_TLS_CLIENT_KEY_FILE": key},
    ]
    for settings in wrong:
        assert not await created(flavour, "value", {**local, **settings}), settings
    assert await created(flavour, "value", local)
