"""Starts a PostgreSQL server for a benchmark, with the defaults of a fresh installation.

It listens on loopback only, keeps its data in a temporary directory, and ends with the benchmark.
Commits are synchronous and reach the disk (`fsync` and `synchronous_commit` are on). The server
refuses to run as root, so root starts it as the user `postgres`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.relay_servers import Failed, Server, free_port, running

_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Database:
    """A running server: its process, its port, and its version."""

    server: Server
    port: int
    version: str

    def new(self, name: str) -> str:
        """Creates a database and returns its URL."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/{name}"


def programs() -> Path | None:
    """Returns the directory of the server's programs, or None if there is none."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    if versions:
        return versions[-1]
    return Path(found).resolve().parent if found else None


@asynccontextmanager
async def database() -> AsyncIterator[Database]:
    """Runs a server until the block is left. Raises Failed if PostgreSQL is not installed."""
    found = programs()
    if found is None:
        raise Failed("needs PostgreSQL's server: on Debian, apt-get install postgresql")
    # A directory that the server's user can reach.
    with tempfile.TemporaryDirectory(prefix="ruvd-bench-pg-", dir="/tmp") as place:
        folder, port = Path(place), free_port()
        data = await asyncio.to_thread(_create, found, folder)
        command = _as_user(
            str(found / "postgres"), "-D", str(data), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
        )  # fmt: skip
        env = {"PATH": "/usr/bin:/bin"}
        async with running("postgres", folder, *command, env=env) as server:
            yield Database(server, port, await _version(server, port))


def _create(found: Path, folder: Path) -> Path:
    """Makes the server's directory of data and returns it."""
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    if os.getuid() == 0:
        shutil.chown(data, "postgres", "postgres")
    initdb = (str(found / "initdb"), "-D", str(data), "-U", "bench", "-A", "trust")
    command = _as_user(*initdb, "-E", "UTF8", "--locale=C")
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    return data


def _as_user(*command: str) -> Sequence[str]:
    drop = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
    return (*drop, *command) if os.getuid() == 0 else command


async def _version(server: Server, port: int) -> str:
    """Returns the server's version once it answers."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            url = f"postgresql://bench@127.0.0.1:{port}/postgres"
            async with await psycopg.AsyncConnection.connect(url) as db:
                row = await (await db.execute("SHOW server_version")).fetchone()
                return str(row[0]) if row else ""
        except psycopg.OperationalError:
            server.check_runs()
            if time.monotonic() > end:
                raise Failed("PostgreSQL does not start") from None
            await asyncio.sleep(0.1)
