"""A PostgreSQL server for tests that is reached as in a deployment: over TCP, with a password."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from certificates import Authority
from postgres import Server
from psycopg import sql

# The password of the user ruvd.
PASSWORD = "sesame"  # noqa: S105  of a server that lives as long as a test


@dataclass
class PasswordServer:
    """The address of a server with the user ruvd, and the CA of its certificate, if it has one."""

    address: str
    ca: bytes = b""


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _certify(directory: Path, authority: Authority) -> list[str]:
    """Writes a certificate for localhost; returns the server's options for it."""
    paths = directory / "tls.crt", directory / "tls.key"
    for path, content in zip(paths, authority.issue("localhost"), strict=True):
        path.write_bytes(content)
        path.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(path, "postgres", "postgres")
    return ["-c", "ssl=on", "-c", f"ssl_cert_file={paths[0]}", "-c", f"ssl_key_file={paths[1]}"]


@contextmanager
def running(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> Iterator[PasswordServer]:
    """Runs a server on a free port of localhost. With `tls` it refuses connections without it."""
    port = _free_port()
    # For the server and for the connections of `Server` itself.
    monkeypatch.setenv("PGPORT", str(port))
    server = Server(directory)
    server.create()
    authority = Authority()
    options = ["-c", "listen_addresses=127.0.0.1"]
    server.options = [*options, *_certify(directory, authority)] if tls else options
    # `Server` uses the socket; everybody else needs the password.
    kind = "hostssl" if tls else "host"
    rules = f"local all all trust\n{kind} all all 127.0.0.1/32 scram-sha-256\n"
    (server.data / "pg_hba.conf").write_text(rules)
    server.start()
    try:
        with psycopg.connect(server.conninfo(), autocommit=True) as db:
            db.execute(sql.SQL("ALTER ROLE ruvd PASSWORD {}").format(PASSWORD))
            db.execute("CREATE DATABASE ruvd")
        yield PasswordServer(f"localhost:{port}", authority.pem if tls else b"")
    finally:
        server.stop()
