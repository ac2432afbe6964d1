"""The signals of `ruvd run`, which are taken one by one, and passed on to the command.

A terminal sends its signals to the command as well, because it is in the same process group. So
those that the kernel sent are not passed on.
"""

import os
import signal
from collections.abc import Mapping, Sequence

_PASSED_ON = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
# Python ignores these, and a command expects that they end it.
_NOT_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
_SI_USER = 0


class Signals:
    """The signals of this process from now on. Signals that it was started to ignore stay so."""

    def __init__(self) -> None:
        taken = [each for each in _PASSED_ON if signal.getsignal(each) is not signal.SIG_IGN]
        self._numbers = {*taken, signal.SIGCHLD}
        # If it is ignored, as some programs leave it, the kernel drops the exit codes of children.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def next(self, seconds: float) -> signal.struct_siginfo | None:
        """Waits for a signal, or the end of a child; returns None after that time."""
        received = signal.sigtimedwait(self._numbers, seconds)
        return None if received is None or received.si_signo == signal.SIGCHLD else received

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> "Command":
        """Starts a command that has the signals as this process had them. Raises OSError."""
        return Command(
            os.posix_spawnp(
                command[0],
                tuple(command),
                environment,
                setsigmask=self._before,
                setsigdef=_NOT_IGNORED,
            )
        )


class Command:
    """A command that runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def exit_code(self) -> int | None:
        """Returns the exit code as a shell shows it, or None while the command runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = 128 - code if code < 0 else code
        return self._code

    def pass_on(self, received: signal.struct_siginfo) -> None:
        """Sends the command a signal that this process got, unless the command has got it, too."""
        if self._code is None and received.si_code <= _SI_USER:
            os.kill(self._pid, received.si_signo)

    def terminate(self) -> None:
        """Sends the command SIGTERM."""
        if self._code is None:
            os.kill(self._pid, signal.SIGTERM)
