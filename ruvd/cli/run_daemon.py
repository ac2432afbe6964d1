"""The daemon of `ruvd run`, a child process: `python -m ruvd.cli.run_daemon PARENT_PID FLAGS...`.

It ends with `ruvd run`, also after SIGKILL: the kernel sends it SIGTERM when the process that
started it has ended.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ruvd.cli.health_check import HealthCheckFailed, check

_MODULE = "ruvd.cli.run_daemon"
_PR_SET_PDEATHSIG = 1
_CHECK_SECONDS = 0.5
_STOP_SECONDS = 10.0
_SHOWN_LINES = 8
_SHOWN_BYTES = 16_384


class RunDaemon:
    """A daemon on a Unix socket in a directory, in a process group of its own.

    Ctrl-C at the terminal reaches the command that uses the daemon, and not the daemon.
    """

    def __init__(self, directory: Path, flags: Sequence[str], log: Path) -> None:
        """Starts the daemon. Raises OSError if the log cannot be written."""
        self.address = f"unix:{directory}/ruvd.sock"
        self.admin_address = f"unix:{directory}/admin.sock"
        self._log = log
        own = (f"--listen={self.address}", f"--admin-listen={self.admin_address}")
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(  # noqa: S603  # our own program, without a shell
                [sys.executable, "-m", _MODULE, str(os.getpid()), *own, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def is_ready(self) -> bool:
        """Returns whether the store and the engine are up. Blocks for half a second at most."""
        try:
            return check(self.address, "readiness", _CHECK_SECONDS).state == "SERVING"
        except HealthCheckFailed:
            return False

    def exit_code(self) -> int | None:
        """Returns the exit code as a shell shows it, or None while the daemon runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def terminate(self) -> None:
        """Lets the daemon drain and end; the second time it ends at once."""
        self._process.terminate()

    def stop(self) -> None:
        """Ends the daemon within some seconds, and waits for that. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_end(self) -> Sequence[str]:
        """Returns the last lines that the daemon has logged."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _SHOWN_BYTES))
            return log.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]


def main() -> int:
    """Runs `ruvd serve` with the flags, until it ends or its parent does."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent has blocked its signals
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # a parent that has ended before sends no signal
        return 1
    from ruvd.cli import run  # noqa: PLC0415  # the lines above come first

    return run(["serve", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
