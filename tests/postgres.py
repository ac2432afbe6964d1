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

_START_SECONDS = 60.0
_numbers = count()


def programs() -> Path:
    """The directory of the server's programs, which Debian does not put into PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert versions, "PostgreSQL is not installed: on Debian, apt-get install postgresql"
    return versions[-1]


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
