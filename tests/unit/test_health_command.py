"""`ruvd health` and its health check: output, exit codes, and the fallback to the full parser."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ruvd.cli import health_check, quick_health, run
from ruvd.cli.address import default_address

NOWHERE = "127.0.0.1:1"


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Yields the address of a server that gives every connection to `answer`."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
        assert not thread.is_alive()


def test_a_probe_imports_neither_grpc_nor_the_command_line() -> None:
    program = f"""
import sys
from ruvd.__main__ import main
sys.argv = ["ruvd", "health", "--address", "{NOWHERE}"]
assert main() == 1
heavy = ("grpc", "google", "cyclopts", "rich", "asyncio", "pydantic", "ruvd_client")
assert not [name for name in heavy if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["health", "--help"],
        ["health", "-h"],
        ["health", "extra"],
        ["health", "--adress", NOWHERE],
        ["health", "--address"],
        ["health", "--address", "--service", "liveness"],
        ["health", "--timeout", "soon"],
        ["health", "--service", "a", "--service", "b"],
        ["--version"],
        ["sessions", "list"],
        [],
    ],
)
def test_other_arguments_are_left_to_the_full_command_line(arguments: list[str]) -> None:
    assert quick_health.try_quick(arguments) is None


@pytest.mark.parametrize(
    "arguments", [["health", "--help"], ["health", "--address"], ["health", "--timeout", "soon"]]
)
def test_help_and_mistakes_are_reported_by_the_full_command_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(arguments)
    printed = capsys.readouterr()
    assert code == (0 if "--help" in arguments else 2)
    wanted = "RUVD_ADDRESS" if "--help" in arguments else arguments[1]
    assert wanted in printed.out + printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--address", "no-port"],
        ["--address", "127.0.0.1:70000"],
        ["--timeout", "0"],
        ["--timeout=-1"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
    ],
)
def test_a_wrong_argument_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["health", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ruvd: ")


def test_the_address_is_the_flag_or_the_variable_or_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert str(default_address) == quick_health.DEFAULT_ADDRESS
    monkeypatch.setenv("RUVD_ADDRESS", f"unix:{tmp_path}/none")
    assert run(["health"]) == 1
    assert run(["health", f"--address={NOWHERE}"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"no daemon at unix:{tmp_path}/none: start one with `ruvd serve`",
        f"no daemon at {NOWHERE}: start one with `ruvd serve`",
    ]


def test_a_listener_that_sends_nothing_times_out() -> None:
    released = threading.Event()
    with listening(lambda _: released.wait(30)) as address:
        started = time.monotonic()
        with pytest.raises(health_check.HealthCheckFailed) as failed:
            health_check.check(address, "", 0.3)
        elapsed = time.monotonic() - started
        released.set()
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert 0.3 <= elapsed < 5


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 9, b"SSH-2.0-OpenSSH_9.6\r\n"]
)
def test_a_server_of_another_protocol_is_not_a_daemon(
    reply: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(lambda connection: connection.sendall(reply)) as address:
        assert run(["health", "--address", address]) == 1
    assert capsys.readouterr().out.startswith(f"INTERNAL: {address} does not speak gRPC: ")
