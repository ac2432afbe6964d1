"""`ruvd token create`: makes a bearer token, whose hash goes into the daemon's tokens_file."""

import fcntl
import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ruvd.cli.console import err, fail, out
from ruvd.config.identities import parse
from ruvd.core.private_files import open_private
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role


def _tenant(_: type, tenant: str) -> None:
    parse(f"token;tenant={tenant}")


def create(
    *,
    tenant: Annotated[str, Parameter(validator=_tenant, help="Tenant that the token stands for.")],
    file: Annotated[
        Path, Parameter(help="The daemon's tokens_file; it is created with mode 0600.")
    ],
    role: Annotated[
        Literal["user", "reader", "admin"], Parameter(help="What the token's owner may do.")
    ] = "user",
) -> None:
    """Runs `ruvd token create`: adds a line to the file and prints the token, once."""
    token, line = tokens.create(tenant, Role(role))
    try:
        _append(file, line)
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    out.out(token)
    name = line.partition(" ")[0][:15]
    err.print(
        f"added {name}... to {file}; to revoke the token, remove that line",
        markup=False,
        style="dim",
    )


def _append(path: Path, line: str) -> None:
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        file.write(f"{line}\n".encode())
