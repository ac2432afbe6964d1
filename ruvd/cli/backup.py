"""`ruvd backup`: copies the store's file while a daemon may be writing to it.

It reads the file and calls no daemon, so it takes the daemon's settings, not its address.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.progress import Progress

from ruvd.cli.console import err, fail, out, print_error
from ruvd.cli.setting_flags import ConfigFile
from ruvd.cli.settings import load_settings
from ruvd.core.errors import StoreUnavailable
from ruvd.stores.sqlite.backup import back_up, needed_keys

_USAGE = 2


def backup(
    file: Annotated[Path, Parameter(help="File to write the copy to.")],
    /,
    *,
    store: Annotated[
        str | None, Parameter(help="Store to copy, as for `ruvd serve`: sqlite or sqlite:PATH.")
    ] = None,
    force: Annotated[bool, Parameter(negative=(), help="Replace FILE if it exists.")] = False,
    config: ConfigFile = None,
) -> int:
    """Runs `ruvd backup`; returns its exit code."""
    source = load_settings({"store": store}, config).sqlite_path
    if source is None:
        print_error("the memory store has no file: name a store with --store sqlite:PATH")
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
        fail(str(error) if force else f"{error} (--force replaces a file that is not in use)")
    except (StoreUnavailable, OSError) as error:
        fail(str(error))
    out.print(f"{source} -> {file}: {size:,} bytes, checked", markup=False)
    if key_ids := needed_keys(file):
        keys = ", ".join(key_ids)
        out.print(f"the copy is encrypted: keep its keys {keys} with it", markup=False)
    return 0
