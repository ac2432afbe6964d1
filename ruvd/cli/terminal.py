"""Shared parts of the commands that call a daemon: its address, the consoles, and errors.

An error ends a command with exit code 1 and one line on stderr that says what to do.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeAlias

import grpc
from cyclopts import Parameter
from rich.console import Console
from ruvd_client import Client, RuvdError

from ruvd.cli.address import Address

CALL_TIMEOUT_SECONDS = 10.0
STREAM = Path("-")


def _no_flag(_: type, path: Path) -> None:
    if str(path).startswith("-") and path != STREAM:
        raise ValueError(f"{path} looks like a flag; for a file of that name use ./{path}")


File: TypeAlias = Annotated[Path, Parameter(allow_leading_hyphen=True, validator=_no_flag)]
AsJson: TypeAlias = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def connected(address: Address) -> Iterator[Client]:
    """Yields a client for the address. A RuvdError that leaves the block ends the command."""
    try:
        token, tls = address.token, address.tls
        if token:
            token()
        client = Client(str(address), timeout=CALL_TIMEOUT_SECONDS, token=token, tls=tls)
    except OSError as error:
        fail(f"cannot read {error.filename}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
    with client:
        try:
            yield client
        except RuvdError as error:
            fail(explain(error, address))


def fail(message: str) -> NoReturn:
    """Ends the command with a line on stderr and exit code 1."""
    print_error(message)
    raise SystemExit(1)


def print_error(message: str) -> None:
    """Prints one line on stderr."""
    err.print(f"ruvd: {printable(message)}", markup=False, style="red")


def explain(error: RuvdError, address: Address | str) -> str:
    """Returns the error as one line: reason, message, and what to do."""
    if not error.reason:
        if isinstance(address, Address) and address.tls:
            return f"cannot call {address}: {one_line(error.message)}"
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return f"no daemon at {address}: start one with `ruvd serve`"
        return f"{error.code.name}: {one_line(error.message)}"
    line = f"{error.reason}: {one_line(error.message)}"
    if error.retry_after_seconds is not None:
        line += f" (try again in {error.retry_after_seconds:g} s)"
    return line


def write(text: str) -> None:
    """Writes a piece of an answer at once, without markup or line breaks of its own."""
    out.out(printable(text), end="")


def one_line(text: str) -> str:
    """Returns the text with spaces instead of line breaks."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """Returns the text without control characters, so that an answer cannot steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def seconds(value: float | None) -> str:
    """Formats a duration for people; a dash if it is unknown."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
