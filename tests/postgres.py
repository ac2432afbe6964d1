"""A PostgreSQL server for tests, started as an ordinary user in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

_START_SECONDS = 60.0
_numbers = count()


def programs() -> Path:
    """The directory of the server's programs, which Debian does not put into PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    if not versions and not found:
        pytest.skip("needs PostgreSQL's server: on Debian, apt-get install postgresql")
    return versions[-1] if versions else Path(str(found)).resolve().parent


def _as_user(command: Sequence[str | Path]) -> list[str]:
    """The command as the user postgres, if this is root, as the server refuses to run as root."""
    drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return [*(drop if os.getuid() == 0 else []), *map(str, command)]


@dataclass
class Server:
    """A server that listens on a Unix socket in `directory` only."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    options: Sequence[str] = field(default=())
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def clock(self) -> Path:
        """The file that sets its wall clock, if `environment` says so."""
        return self.directory / "clock"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def create(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
        subprocess.run(
            _as_user(
                [
                    programs() / "initdb",
                    *("-D", self.data, "-U", "ruvd", "-E", "UTF8", "--locale=C", "--no-sync"),
                ]
            ),
            check=True,
            capture_output=True,
            cwd="/",
        )

    def start(self) -> None:
        # fsync is off, because no test cuts the power, and a SIGKILL loses nothing then.
        options = ["-c", "fsync=off", "-c", "max_connections=100", *self.options]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                _as_user(
                    [
                        *("env", *(f"{name}={value}" for name, value in self.environment.items())),
                        programs() / "postgres",
                        *("-D", self.data, "-k", self.directory, "-c", "listen_addresses="),
                        *options,
                    ]
                ),
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
            )
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.conninfo()).close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
                assert time.monotonic() < end, "PostgreSQL does not start"
                time.sleep(0.05)
            else:
                return

    def conninfo(self) -> str:
        return f"host={self.directory} user=ruvd dbname=postgres"

    def copy_to(self, directory: Path) -> Server:
        """Returns a standby of this server, not started, to which commits are replicated."""
        standby = Server(directory, options=self.options)
        directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        subprocess.run(
            _as_user(
                [
                    programs() / "pg_basebackup",
                    *("-D", standby.data, "-d", self.conninfo(), "-R", "-X", "stream"),
                    *("-c", "fast", "--no-sync"),
                ]
            ),
            check=True,
            capture_output=True,
            cwd="/",
        )
        return standby

    def children(self) -> list[int]:
        """The ids of the server's own processes, such as the one that receives from a primary."""
        assert self.process
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(each) for each in path.read_text().split()]

    def replicate_synchronously(self) -> None:
        """Makes commits wait for a standby from now on."""
        with psycopg.connect(self.conninfo(), autocommit=True) as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            db.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Makes a standby the primary, which waits for no standby of its own."""
        with psycopg.connect(self.conninfo(), autocommit=True) as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            db.execute("SELECT pg_reload_conf()")
            db.execute("SELECT pg_promote()")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server: SIGINT is fast and clean, SIGQUIT is a crash."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def new_schema(self) -> str:
        """Returns a connection string with an empty schema of its own."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.conninfo(), autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {name}".encode())
        return f"{self.conninfo()} options='-c search_path={name}'"


@contextmanager
def running(directory: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """Runs a new server while the context lasts."""
    server = Server(directory, options=options)
    server.create()
    server.start()
    try:
        yield server
    finally:
        server.stop()
