"""`ruvd rekey`: encrypts the store with the first key of the key file, or takes encryption away.

A daemon that has the store open does that by itself, and nobody else may write to the store then.
So the command waits for it, and otherwise does the work itself.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.progress import Progress

from ruvd.cli.console import err, fail, out, print_error
from ruvd.cli.setting_flags import ConfigFile
from ruvd.cli.settings import load_settings
from ruvd.config.loader import Settings
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.store import StoreLocked, StoreSealed
from ruvd.sealing.keys import KeyRing, OperatorKeys, parse_keys
from ruvd.stores.sqlite.rekey import Left, make_plain, read_left_to_do, rekey

_USAGE = 2
_POLL_SECONDS = 0.5
# A daemon notices a changed key file within seconds, and then always has a step done.
_MAX_STALL_SECONDS = 60.0


def run(
    *,
    store: Annotated[
        str | None, Parameter(help="Store, as for `ruvd serve`: sqlite or sqlite:PATH.")
    ] = None,
    file: Annotated[
        Path | None, Parameter(help="Key file. Default: the setting encryption_key_file.")
    ] = None,
    plain: Annotated[
        bool,
        Parameter(negative=(), help="Take the encryption away. The daemon must be stopped."),
    ] = False,
    config: ConfigFile = None,
) -> int:
    """Runs `ruvd rekey`; returns its exit code."""
    settings = load_settings({"store": store, "encryption_key_file": file}, config)
    try:
        path, ring = _files(settings)
    except ValueError as error:
        print_error(str(error))
        return _USAGE
    try:
        with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task("rows and data keys", total=None)
            done = _Done()

            def show(left: Left) -> None:
                total = done.total(left)
                bar.update(task, total=total, completed=total - left.count)

            try:
                (make_plain if plain else rekey)(path, OperatorKeys(ring), show)
            except StoreSealed:
                raise
            except StoreLocked as locked:
                if plain:
                    fail(f"{locked}; encryption is taken away while the daemon is stopped")
                _wait_for_daemon(path, settings.encryption_key_file, ring, show)
    except StoreSealed as error:
        print_error(str(error))
        return _USAGE
    except (StoreUnavailable, StoreLocked, OSError) as error:
        fail(str(error))
    if plain:
        out.print(f"{path} is no longer encrypted: unset encryption_key_file", markup=False)
        return 0
    out.print(f"{path} is encrypted with the key {ring.current_id}", markup=False)
    if old := ", ".join(ring.ids[1:]):
        out.print(
            f"it no longer needs the keys {old}: remove them, unless backups need them",
            markup=False,
        )
    return 0


class _Done:
    """The most work that was left, of which a share is done."""

    def __init__(self) -> None:
        self._total = 0

    def total(self, left: Left) -> int:
        """Returns the total work, of which so much is left."""
        self._total = max(self._total, left.count)
        return self._total


def _files(settings: Settings) -> tuple[Path, KeyRing]:
    path, file = settings.sqlite_path, settings.encryption_key_file
    if path is None:
        raise ValueError("only a sqlite store is encrypted: name it with --store sqlite:PATH")
    if file is None:
        raise ValueError("there is no key file: set encryption_key_file, or name it with --file")
    try:
        return path, parse_keys(file.read_bytes())
    except OSError as error:
        raise ValueError(f"encryption_key_file: cannot read {file}: {error.strerror}") from None


def _wait_for_daemon(
    path: Path, file: Path | None, ring: KeyRing, show: Callable[[Left], None]
) -> None:
    """Waits until the daemon that has the store open has done the work."""
    before: Left | None = None
    since = time.monotonic()
    while True:
        left = read_left_to_do(path, ring.current_id)
        if left is not None:
            show(left)
            if not left.count:
                return
        if left != before:
            before, since = left, time.monotonic()
        elif time.monotonic() - since > _MAX_STALL_SECONDS:
            fail(
                f"the daemon that has {path} open does not use the keys of {file}: start it with"
                " encryption_key_file, or look into its log"
            )
        time.sleep(_POLL_SECONDS)
