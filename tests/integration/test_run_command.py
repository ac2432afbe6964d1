"""`ruvd run`: a command beside a daemon of its own, which begins before it and ends after it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import command_line
import pytest
from command_line import beside

MEMORY = ("run", "--engine", "echo", "--store", "memory")
SECONDS = 90
# Runs a program on a terminal of its own; what is written to its input is typed.
ON_TERMINAL = (sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)")


def python(text: str) -> tuple[str, ...]:
    """Returns the words that run a Python program after two hyphens."""
    return ("--", sys.executable, "-u", "-c", text)


WAITING = python(
    """
import os, signal, sys
def end(number, frame):
    print("got", number)
    sys.exit(5)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, end)
print(os.environ["RUVD_ADDRESS"])
while True:
    signal.pause()
"""
)
KILLS_THE_DAEMON = python(
    """
import os, psutil, signal, time
for child in psutil.Process(os.getppid()).children():
    if child.pid != os.getpid():
        child.kill()
time.sleep(120)
"""
)


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def test_the_command_finds_a_ready_daemon_and_its_exit_code_is_passed_on(
    tmp_path: Path,
) -> None:
    log = tmp_path / "daemon.log"
    program = """
import os, pathlib, sys
from ruvd_client import Client
path = os.environ["RUVD_ADDRESS"].removeprefix("unix:")
print(path, oct(pathlib.Path(path).parent.stat().st_mode))
with Client() as client:
    print(client.complete("hello daemon", session_id="s").text())
sys.exit(int(sys.argv[1]))
"""
    done = await command_line.run(*MEMORY, "--daemon-log", str(log), *python(program), "7")
    path, mode, *answer = done.stdout.split()
    assert (done.returncode, done.stderr) == (7, "")
    assert (mode, answer) == ("0o40700", ["hello", "daemon"])
    assert not Path(path).parent.exists()
    assert "stopped" in log.read_text().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
async def test_a_signal_is_passed_on_to_the_command_which_decides(number: signal.Signals) -> None:
    async with beside(*MEMORY, *WAITING) as process, asyncio.timeout(SECONDS):
        assert (await line(process)).startswith("unix:")
        process.send_signal(number)
        assert await line(process) == f"got {number.value}"
        assert await process.wait() == 5


async def test_a_command_that_a_signal_ends_has_the_exit_code_of_a_shell() -> None:
    program = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (await command_line.run(*MEMORY, *program)).returncode == 128 + signal.SIGKILL


async def test_the_exit_code_is_passed_on_also_where_the_end_of_children_is_ignored() -> None:
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    under = (sys.executable, "-c", ignoring + "os.execv(sys.argv[1], sys.argv[1:])")
    program = python("import sys; sys.exit(6)")
    async with beside(*MEMORY, *program, under=under) as process, asyncio.timeout(SECONDS):
        _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (6, b"")


async def test_ctrl_c_at_the_terminal_reaches_the_command_once_and_the_daemon_not_at_all() -> None:
    program = python(
        """
import signal, time
from ruvd_client import Client
count = 0
def interrupted(number, frame):
    global count
    count += 1
signal.signal(signal.SIGINT, interrupted)
print("waiting")
while not count:
    time.sleep(0.05)
time.sleep(1.5)  # a second one would have come by now
with Client() as client:
    print("interrupts:", count, client.complete("still here").text())
"""
    )
    async with beside(*MEMORY, *program, under=ON_TERMINAL, stdin=True) as process:
        assert process.stdin is not None
        async with asyncio.timeout(SECONDS):
            while "waiting" not in await line(process):
                pass
            process.stdin.write(b"\x03")
            while not (found := re.search(r"interrupts: (.*)", await line(process))):
                pass
            assert found[1].strip() == "1 still here"
            assert await process.wait() == 0


async def test_a_turn_that_runs_when_the_command_ends_is_finished_and_kept(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db", "--echo-delay-seconds", "0.3")
    begins = """
from ruvd_client import Client, OnDisconnect
with Client() as client:
    answer = client.complete(
        "one two three four five six", session_id="s",
        on_disconnect=OnDisconnect.ON_DISCONNECT_CONTINUE,
    )
    print(next(iter(answer)))
"""
    first = await command_line.run(*MEMORY[:3], *store, *python(begins))
    assert (first.returncode, first.stdout.split()) == (0, ["one"])
    shows = ("--", sys.executable, "-m", "ruvd", "sessions", "show", "s")
    second = await command_line.run(*MEMORY[:3], *store, *shows)
    assert second.stdout.count("one two three four five six") == 2, second.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "there is no command"),
        (("--", "no-such-command"), 127, "no such command"),
        (("--", __file__), 126, "not an executable file"),
        (("--max-sessions", "0", "--", "true"), 2, "max_sessions (from --max-sessions)"),
        (("--config", "missing.toml", "--", "true"), 2, "missing.toml does not exist"),
    ],
)
async def test_a_wrong_call_says_so_and_starts_nothing(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = await command_line.run(*MEMORY, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_a_daemon_that_cannot_start_gives_its_reason_and_its_exit_code(
    tmp_path: Path,
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    program = (sys.executable, "-m", "ruvd", *MEMORY[:3], *store, "--", "touch", f"{tmp_path}/ran")
    done = await command_line.run(*MEMORY[:3], *store, "--", *program)
    assert done.returncode == 4
    assert "the daemon could not start" in done.stderr
    assert "in use" in done.stderr
    assert not (tmp_path / "ran").exists()


async def test_a_daemon_that_does_not_become_ready_in_time_is_ended() -> None:
    engine = ("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    arguments = ("run", *engine, "--store", "memory", "--ready-seconds", "1", "--", "true")
    done = await command_line.run(*arguments)
    assert done.returncode == 1
    assert "the daemon was not ready within 1 s; its log ends with:" in done.stderr


async def test_a_command_whose_daemon_is_gone_is_terminated() -> None:
    done = await command_line.run(*MEMORY, *KILLS_THE_DAEMON)
    assert done.returncode == 1
    assert "the daemon has ended" in done.stderr


async def test_no_daemon_outlives_a_killed_run() -> None:
    program = python(
        """
import os, socket, time
print("running")
while True:
    try:
        socket.socket(socket.AF_UNIX).connect(os.environ["RUVD_ADDRESS"].removeprefix("unix:"))
    except OSError:
        print("the daemon is gone")
        break
    time.sleep(0.1)
"""
    )
    async with beside(*MEMORY, *program) as process, asyncio.timeout(SECONDS):
        assert await line(process) == "running"
        process.kill()
        assert await line(process) == "the daemon is gone"
