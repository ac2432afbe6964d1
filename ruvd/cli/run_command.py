"""`ruvd run -- CMD`: runs a command beside a daemon of its own."""

import inspect
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from ruvd.cli.console import err, print_error
from ruvd.cli.run_daemon import RunDaemon
from ruvd.cli.run_signals import Signals
from ruvd.cli.setting_flags import command_line, with_setting_flags
from ruvd.cli.settings import load_settings

_USAGE = 2
_CANNOT_EXECUTE = 126
_NOT_FOUND = 127
_DAEMON_ENDED = 1
_POLL_SECONDS = 0.1
_NOTE_SECONDS = 10.0
# The daemon ends the streams of its callers and its engine within this time after a drain.
_STOP_SECONDS = 20.0
# The longest path of a Unix socket, without the zero byte that ends it.
_MAX_SOCKET_PATH = 107


class _Stopped(Exception):
    """There is nothing to wait for any more; `code` is the exit code of `ruvd run`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _run(
    given: Mapping[str, Any],
    config: Path | None,
    daemon_log: Path | None,
    ready_seconds: float,
    *command: str,
) -> int:
    """Runs `ruvd run`; returns its exit code."""
    if not command:
        print_error("there is no command: put it after two hyphens, as in ruvd run -- ./app")
        return _USAGE
    settings = load_settings(given, config)
    if code := _why_not(command[0]):
        return code
    with tempfile.TemporaryDirectory(prefix="ruvd-") as name:
        directory = Path(name)
        if len(f"{directory}/admin.sock") > _MAX_SOCKET_PATH:
            print_error(f"{directory} is too long for a socket's path: set TMPDIR to a shorter one")
            return _USAGE
        if daemon_log is None and "log_format" not in given:
            given = {**given, "log_format": "human"}  # of its own log, people see the end
        signals = Signals()
        try:
            flags = command_line(given, config)
            daemon = RunDaemon(directory, flags, daemon_log or directory / "daemon.log")
        except OSError as error:
            print_error(f"the log of the daemon cannot be written: {error}")
            return _USAGE
        try:
            _wait_until_ready(daemon, signals, ready_seconds)
            code = _run_command(command, daemon, signals)
            _drain(daemon, signals, settings.drain_seconds + _STOP_SECONDS)
        except _Stopped as stopped:
            return stopped.code
        finally:
            daemon.stop()
    return code


def _why_not(program: str) -> int:
    """Returns the exit code of a program that cannot be run, after it has said why; else 0."""
    if shutil.which(program):
        return 0
    if os.sep in program and Path(program).exists():
        print_error(f"cannot run {program}: it is not an executable file")
        return _CANNOT_EXECUTE
    print_error(f"cannot run {program}: there is no such command")
    return _NOT_FOUND


def _wait_until_ready(daemon: RunDaemon, signals: Signals, seconds: float) -> None:
    started = noted = time.monotonic()
    with err.status("starting the daemon …") as status:
        while not daemon.is_ready():
            now = time.monotonic()
            if (code := daemon.exit_code()) is not None:
                _explain(daemon, "the daemon could not start")
                raise _Stopped(code or _DAEMON_ENDED)
            if now - started > seconds:
                _explain(daemon, f"the daemon was not ready within {seconds:g} s")
                raise _Stopped(_DAEMON_ENDED)
            last = "".join(daemon.log_end()[-1:])
            status.update(f"starting the daemon, {now - started:.0f} s … {last[:200]}")
            if not err.is_terminal and now - noted >= _NOTE_SECONDS:
                noted = now
                print_error(f"waiting for the daemon since {now - started:.0f} s: {last[:500]}")
            received = signals.next(_POLL_SECONDS)
            if received:
                raise _Stopped(128 + received.si_signo)


def _run_command(command: tuple[str, ...], daemon: RunDaemon, signals: Signals) -> int:
    environment = {
        **os.environ,
        "RUVD_ADDRESS": daemon.address,
        "RUVD_ADMIN_ADDRESS": daemon.admin_address,
    }
    try:
        running = signals.start(command, environment)
    except OSError as error:
        print_error(f"cannot run {command[0]}: {error.strerror}")
        raise _Stopped(_CANNOT_EXECUTE) from None
    is_lost = False
    while (code := running.exit_code()) is None:
        if not is_lost and daemon.exit_code() is not None:
            is_lost = True
            _explain(daemon, "the daemon has ended, so the command is terminated")
            running.terminate()
        received = signals.next(_POLL_SECONDS if is_lost else 1.0)
        if received:
            running.pass_on(received)
    return _DAEMON_ENDED if is_lost else code


def _drain(daemon: RunDaemon, signals: Signals, seconds: float) -> None:
    """Lets running turns end, and what waits be written. A signal ends that at once."""
    deadline = time.monotonic() + seconds
    daemon.terminate()
    with err.status("ending the daemon …"):
        while daemon.exit_code() is None:
            if time.monotonic() > deadline:
                print_error(f"the daemon did not end within {seconds:g} s and is stopped")
                return
            received = signals.next(_POLL_SECONDS)
            if received and received.si_signo in (signal.SIGINT, signal.SIGTERM):
                daemon.terminate()


def _explain(daemon: RunDaemon, message: str) -> None:
    print_error(f"{message}; its log ends with:")
    for line in daemon.log_end():
        err.print(f"  {line}", markup=False)


run = with_setting_flags(
    _run,
    inspect.Parameter(
        "command",
        inspect.Parameter.VAR_POSITIONAL,
        annotation=Annotated[
            str, Parameter(allow_leading_hyphen=True, help="Command to run, with its arguments.")
        ],
    ),
    inspect.Parameter(
        "daemon_log",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None,
            Parameter(help="File to append the daemon's log to. Default: it is not kept."),
        ],
    ),
    inspect.Parameter(
        "ready_seconds",
        inspect.Parameter.KEYWORD_ONLY,
        default=180.0,
        annotation=Annotated[
            float,
            Parameter(
                help="Seconds to wait until the daemon is ready.",
                validator=validators.Number(gt=0),
            ),
        ],
    ),
)
