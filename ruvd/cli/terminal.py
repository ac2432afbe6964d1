"""Shared parts of the commands that call a daemon: the client, and its errors as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import grpc
from cyclopts import Parameter
from ruvd_client import Client, RuvdError

from ruvd.cli.address import Address
from ruvd.cli.console import fail, one_line

CALL_TIMEOUT_SECONDS = 10.0
STREAM = Path("-")


def _no_flag(_: type, path: Path) -> None:
    if str(path).startswith("-") and path != STREAM:
        raise ValueError(f"{path} looks like a flag; for a file of that name use ./{path}")


File: TypeAlias = Annotated[Path, Parameter(allow_leading_hyphen=True, validator=_no_flag)]
AsJson: TypeAlias = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]


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
