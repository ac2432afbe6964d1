"""`ruvd backup`: a copy of the store's file, beside a daemon that goes on writing.

It works on the file and asks no daemon, so it takes the daemon's settings, not its address.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.progress import Progress

from ruvd.cli.terminal import complain, err, fail, out
from ruvd.config.loader import SettingsInvalid, load
from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.backup import back_up

_USAGE = 2


def backup(
    file: Path,
    /,
    *,
    store: Annotated[
        str | None, Parameter(help="The store, as for `ruvd serve`: sqlite or sqlite:PATH.")
    ] = None,
    force: Annotated[bool, Parameter(negative=(), help="Replace FILE if it exists.")] = False,
    config: Annotated[
        Path | None, Parameter(help="The settings file; RUVD_CONFIG, or ./ruvd.toml.")
    ] = None,
) -> int:
    """Copy the sessions' store to FILE, as it is at one instant; the daemon may run.

    To restore, stop the daemon and put the copy in the store's place, or name it with --store.
    Exit codes: 0 copied, 1 failed, 2 wrong settings.
    """
    try:
        settings, _ = load({} if store is None else {"store": store}, file=config)
    except SettingsInvalid as error:
        complain(str(error))
        return _USAGE
    source = settings.sqlite_path
    if source is None:
        complain("the memory store has no file: name one with --store sqlite:PATH")
        return _USAGE
    size = 0
    try:
        with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(f"copying {source.name}", total=None)
            size = back_up(
                source,
                file,
                overwrite=force,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except FileExistsError as error:
        fail(str(error) if force else f"{error} (--force replaces a file that nobody uses)")
    except (StoreUnavailable, OSError) as error:
        fail(str(error))
    out.print(f"{source} -> {file}: {size:,} bytes, checked", markup=False)
    return 0
