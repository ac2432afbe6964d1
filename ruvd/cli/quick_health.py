"""`ruvd health` without the command line's libraries, for arguments that leave no question.

Whatever else there is on its command line, `--help` or a mistake, is for the full parser.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ruvd.cli import health_check

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_SERVICE = "readiness"
DEFAULT_TIMEOUT_SECONDS = 2.0
_MAX_TIMEOUT_SECONDS = 86_400.0
_FLAGS = ("--address", "--service", "--timeout")


def quick(arguments: Sequence[str]) -> int | None:
    """The exit code of `ruvd health`; None if the full command line has to look at it."""
    if arguments[:1] != ["health"]:
        return None
    given: dict[str, str] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not equals:
            value = next(rest, "-")
        if name not in _FLAGS or name in given or (value.startswith("-") and not equals):
            return None
        given[name] = value
    try:
        timeout_seconds = float(given.get("--timeout", DEFAULT_TIMEOUT_SECONDS))
    except ValueError:
        return None
    address = given.get("--address") or os.environ.get("RUVD_ADDRESS") or DEFAULT_ADDRESS
    return report(address, given.get("--service", DEFAULT_SERVICE), timeout_seconds)


def report(address: str, service: str, timeout_seconds: float) -> int:
    """Print one line; 0 if the service is serving, 1 if not, 2 for what cannot be asked."""
    if not 0 < timeout_seconds <= _MAX_TIMEOUT_SECONDS:
        return _wrong(f"--timeout: {timeout_seconds:g} is not above 0 and up to a day")
    try:
        answer = health_check.check(address, service, timeout_seconds)
    except ValueError as error:
        return _wrong(str(error))
    except health_check.ProbeFailed as failure:
        _print(explain(failure, address, service))
        return 1
    _print(f"{service or 'server'}: {answer.state}")
    return 0 if answer.state == "SERVING" else 1


def explain(failure: health_check.ProbeFailed, address: str, service: str) -> str:
    """Why there is no answer, in one line that says what to do."""
    if failure.code == "UNAVAILABLE":
        return f"no daemon at {address}: start one with `ruvd serve`"
    if failure.code == "NOT_FOUND":
        return f"{service}: no such service at {address}"
    return f"{failure.code}: {failure}"


def _wrong(message: str) -> int:
    sys.stderr.write(f"ruvd: {message}\n")
    return 2


def _print(text: str) -> None:
    sys.stdout.write("".join(c for c in text if c.isprintable()) + "\n")
