"""What the commands that talk to a daemon share: its address, the two consoles, and the one door
through which errors leave, as one line on stderr that says what to do, and exit code 1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn, TypeAlias

import grpc
from cyclopts import Parameter
from rich.console import Console
from ruvd_client import Client, RuvdError
from ruvd_client.protocol import DEFAULT_ADDRESS

CALL_TIMEOUT_SECONDS = 10.0

Address: TypeAlias = Annotated[
    str,
    Parameter(
        env_var="RUVD_ADDRESS",
        help="Where the daemon listens: HOST:PORT or unix:PATH.",
        negative=(),
    ),
]
default_address = DEFAULT_ADDRESS

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client for this address. A RuvdError that leaves the block ends the command."""
    with Client(address, timeout=CALL_TIMEOUT_SECONDS) as client:
        try:
            yield client
        except RuvdError as error:
            fail(explain(error, address))


def fail(message: str) -> NoReturn:
    """End the command with a line on stderr and exit code 1."""
    complain(message)
    raise SystemExit(1)


def complain(message: str) -> None:
    """One line on stderr."""
    err.print(f"ruvd: {printable(message)}", markup=False, style="red")


def explain(error: RuvdError, address: str) -> str:
    """The error in one line: its reason, what happened, what to do."""
    if not error.reason:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return f"no daemon at {address}: start one with `ruvd serve`"
        return f"{error.code.name}: {one_line(error.message)}"
    line = f"{error.reason}: {one_line(error.message)}"
    if error.retry_after_seconds is not None:
        line += f" (try again in {error.retry_after_seconds:g} s)"
    return line


def write(text: str) -> None:
    """Write a piece of an answer as it is, and at once."""
    out.out(printable(text), end="")


def one_line(text: str) -> str:
    """The text with its line breaks as spaces."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """The text without control characters: a model's answer must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def seconds(value: float | None) -> str:
    """A duration for people; a dash when it is unknown."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
