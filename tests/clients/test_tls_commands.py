"""The commands against a daemon that listens with TLS and asks for a client certificate."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from certificates import Files
from running import StartDaemon
from ruvd_client import AsyncClient, Tls

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]
ECHO = ("--engine", "echo", "--store", "memory")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest_asyncio.fixture
async def address(daemon: StartDaemon, files: Files) -> AsyncIterator[str]:
    async with daemon(*ECHO, *files.flags, "--client-ca-file", str(files.ca)) as running:
        yield running.address


@pytest.fixture
def flags(files: Files, address: str) -> tuple[str, ...]:
    certificate, key = files.issue("client", "spiffe://example.org/client")
    return (
        *("--address", address, "--tls-ca-file", str(files.ca)),
        *("--tls-client-cert-file", str(certificate), "--tls-client-key-file", str(key)),
    )


@pytest.mark.parametrize(
    "command",
    [
        ("health",),
        ("health", "--service", "liveness"),
        ("sessions", "list"),
        ("metrics",),
        ("models",),
        ("chat",),
    ],
    ids=" ".join,
)
async def test_a_command_reaches_a_daemon_with_tls(
    ruvd: Ruvd, flags: tuple[str, ...], command: tuple[str, ...]
) -> None:
    done = await ruvd(*command, *flags, stdin="hello\n")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [("admin", "status"), ("drain",)], ids=" ".join)
async def test_a_command_of_administration_needs_a_certificate_with_the_role_admin(
    ruvd: Ruvd, daemon: StartDaemon, files: Files, command: tuple[str, ...]
) -> None:
    rules = ("spiffe://example.org/ops;tenant=t;role=admin", "**;tenant=t")
    identities = [flag for rule in rules for flag in ("--client-identities", rule)]
    ca = ("--client-ca-file", str(files.ca))
    async with daemon(*ECHO, *files.flags, *ca, *identities) as running:
        for name, code in {"ops": 0, "other": 1}.items():
            certificate, key = files.issue(name, f"spiffe://example.org/{name}")
            done = await ruvd(
                *(*command, "--admin-address", running.address, "--tls-ca-file", str(files.ca)),
                *("--tls-client-cert-file", str(certificate), "--tls-client-key-file", str(key)),
            )
            assert done.returncode == code, done.stderr


@pytest.mark.parametrize("command", [("health",), ("sessions", "list")], ids=" ".join)
async def test_a_command_without_the_certificate_says_that_it_cannot_call(
    ruvd: Ruvd, address: str, files: Files, command: tuple[str, ...]
) -> None:
    done = await ruvd(*command, "--address", address, "--tls-ca-file", str(files.ca))
    assert done.returncode == 1
    missing = await ruvd(*command, "--address", address, "--tls-ca-file", "/nowhere/ca.pem")
    assert missing.returncode in (1, 2)
    assert "No such file" in missing.stderr


@pytest.mark.parametrize("command", [("health",), ("models",), ("health", "--service=liveness")])
async def test_a_unix_socket_needs_no_tls_whatever_the_files(
    ruvd: Ruvd, daemon: StartDaemon, files: Files, command: tuple[str, ...]
) -> None:
    async with daemon(*ECHO) as running:
        flags = ("--address", running.socket, "--tls-ca-file", str(files.ca))
        assert (await ruvd(*command, *flags)).returncode == 0


async def test_the_name_in_the_certificate_may_differ_from_the_host(
    ruvd: Ruvd, files: Files, address: str, flags: tuple[str, ...]
) -> None:
    certificate, key = files.issue("client", "client.example.org")
    for command in (("health",), ("models",)):
        named = await ruvd(*command, *flags, "--tls-server-name", "localhost")
        assert named.returncode == 0, named
        wrong = await ruvd(*command, *flags, "--tls-server-name", "example.org")
        assert wrong.returncode == 1, wrong
    tls = Tls(files.ca, certificate, key, "localhost")
    async with AsyncClient(address, tls=tls) as client:
        assert await client.complete("hello").text() == "hello"


async def test_a_token_is_made_and_taken_from_a_file_or_a_variable(
    ruvd: Ruvd, daemon: StartDaemon, tmp_path: Path
) -> None:
    tokens, secret = tmp_path / "tokens", tmp_path / "secret"
    made = await ruvd("token", "create", "--tenant", "acme", "--file", str(tokens))
    assert (made.returncode, tokens.stat().st_mode & 0o777) == (0, 0o600)
    token = made.stdout.strip()
    await asyncio.to_thread(secret.write_text, made.stdout)
    assert token not in tokens.read_text() + made.stderr
    reader = ("--tenant", "acme", "--role", "reader", "--file", str(tokens))
    assert (await ruvd("token", "create", *reader)).returncode == 0
    assert len(tokens.read_text().splitlines()) == 2
    async with daemon(*ECHO, "--tokens-file", str(tokens)) as running:
        address = ("--address", running.address)
        refused = await ruvd("sessions", "list", *address)
        assert (refused.returncode, "UNAUTHENTICATED" in refused.stderr) == (1, True)
        assert (await ruvd("health", *address)).returncode == 0
        listed = await ruvd("sessions", "list", *address, "--token-file", str(secret))
        assert (listed.returncode, listed.stdout) == (0, "no sessions\n")
        async with AsyncClient(running.address, token=token) as client:
            assert await client.complete("hello").text() == "hello"
    for tenant in ("a b", "ä", ""):
        wrong = await ruvd("token", "create", "--tenant", tenant, "--file", str(tokens))
        assert wrong.returncode == 2
    nowhere = await ruvd("token", "create", "--tenant", "a", "--file", "/nowhere/tokens")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
