"""A daemon with the echo engine, as users run it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruvd_client import Client

DAEMON = os.environ.get("RUVD", "ruvd")


def wait_until_ready(address: str) -> None:
    end = time.monotonic() + 60
    with Client(address) as client:
        while not client.health():
            assert time.monotonic() < end, "the daemon does not become ready"
            time.sleep(0.1)


@pytest.fixture
def session_id() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as made:
        yield made


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as folder:
        address = f"unix:{folder}/r.sock"
        command = [DAEMON, "serve", "--listen", address, "--engine", "echo", "--store", "memory"]
        with (Path(folder) / "log").open("wb") as log:
            daemon = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            wait_until_ready(address)
            yield address
        finally:
            daemon.terminate()
            daemon.wait(30)
