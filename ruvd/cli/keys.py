"""`ruvd key create`: makes a key that encrypts what the daemon stores."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.console import err, fail, out
from ruvd.sealing.keys import add_key


def create(
    *,
    file: Annotated[
        Path,
        Parameter(help="The daemon's encryption_key_file; it is created with mode 0600."),
    ],
    key_id: Annotated[
        str, Parameter(name="id", help="Id of the key. Default: the date and random digits.")
    ] = "",
) -> None:
    """Runs `ruvd key create`: puts a key before the others in the file, and prints its id."""
    try:
        made = add_key(file, key_id)
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
    out.out(made)
    err.print(
        f"added the key {made} to {file}; without this file nothing that it encrypts can be read",
        markup=False,
        style="dim",
    )
