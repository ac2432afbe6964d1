"""The commands against a daemon that listens with TLS and asks for a client certificate."""

from __future__ import annotations

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
        ("drain",),
    ],
    ids=" ".join,
)
async def test_a_command_reaches_a_daemon_with_tls(
    ruvd: Ruvd, flags: tuple[str, ...], command: tuple[str, ...]
) -> None:
    done = await ruvd(*command, *flags, stdin="hello\n")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [("health",), ("sessions", "list")], ids=" ".join)
async def test_a_command_without_the_certificate_says_that_it_cannot_call(
    ruvd: Ruvd, address: str, files: Files, command: tuple[str, ...]
) -> None:
    done = await ruvd(*command, "--address", address, "--tls-ca-file", str(files.ca))
    assert done.returncode == 1
    missing = await ruvd(*command, "--address", address, "--tls-ca-file", "/nowhere/ca.pem")
    assert missing.returncode in (1, 2)
    assert "No such file" in missing.stderr


async def test_the_name_in_the_certificate_may_differ_from_the_host(
    ruvd: Ruvd, files: Files, address: str, flags: tuple[str, ...]
) -> None:
    certificate, key = files.issue("client")
    for command in (("health",), ("models",)):
        named = await ruvd(*command, *flags, "--tls-server-name", "localhost")
        assert named.returncode == 0, named
        wrong = await ruvd(*command, *flags, "--tls-server-name", "example.org")
        assert wrong.returncode == 1, wrong
    tls = Tls(files.ca, certificate, key, "localhost")
    async with AsyncClient(address, tls=tls) as client:
        assert await client.complete("hello").text() == "hello"
