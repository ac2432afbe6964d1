"""`ruvd migrate`: copies sessions from a SQLite store to PostgreSQL, and compares them."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.progress import Progress

from ruvd.cli.console import err, fail, out, print_error
from ruvd.cli.migration import Migration, MigrationRefused, Outcome
from ruvd.cli.setting_flags import ConfigFile
from ruvd.config.loader import Settings, SettingsInvalid, load
from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.sealing.keys import OperatorKeys, parse_keys
from ruvd.stores.sqlite.sealed_rows import SealedRows
from ruvd.stores.sqlite.snapshot import Snapshot, locked, snapshot

if TYPE_CHECKING:  # psycopg is optional
    from ruvd.stores.postgres.imports import ImportTarget

_USAGE = 2


def migrate(
    *,
    source: Annotated[
        str, Parameter(name="--from", help="Store to copy, as for `ruvd serve`: sqlite:PATH.")
    ],
    target: Annotated[
        str, Parameter(name="--to", help="Store to copy to: postgresql://USER@HOST/DATABASE.")
    ],
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Read and check everything, and write nothing.")
    ] = False,
    while_serving: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Copy also while a daemon has the source open. What it stores after the beginning"
            " of the copy is not copied.",
        ),
    ] = False,
    copy_dir: Annotated[
        Path | None,
        Parameter(help="Directory for a temporary copy of the source. Default: the source's."),
    ] = None,
    encryption_key_file: Annotated[
        Path | None,
        Parameter(help="Key file of an encrypted source. Default: the setting of this name."),
    ] = None,
    store_password_file: Annotated[
        Path | None,
        Parameter(help="File with the password for the target. Default: the setting of this name."),
    ] = None,
    config: ConfigFile = None,
) -> int:
    """Runs `ruvd migrate`; returns its exit code."""
    try:
        keys = {"encryption_key_file": encryption_key_file} if encryption_key_file else {}
        password = {"store_password_file": store_password_file} if store_password_file else {}
        of_source, _ = load({"store": source, **keys}, file=config)
        given = {"store": target, "encryption_key_file": None, **password}
        of_target, _ = load(given, file=config)
        path, sealing = _source(of_source)
        destination = _target(of_target)
    except (SettingsInvalid, ValueError) as error:
        print_error(str(error))
        return _USAGE
    try:
        if not path.is_file():
            fail(f"there is no store at {path}")
        with nullcontext() if dry_run or while_serving else locked(path):
            outcome = _run(path, sealing, copy_dir or path.parent, destination, dry_run=dry_run)
    except StoreLocked as error:
        text = str(error)
        if " is in use by " in text:
            text += ". --dry-run and --while-serving copy nonetheless, see --help"
        fail(text)
    except (StoreUnavailable, MigrationRefused, OSError) as error:
        fail(str(error))
    return _report(outcome, dry_run=dry_run, while_serving=while_serving)


def _source(settings: Settings) -> tuple[Path, SealedRows | None]:
    path, file = settings.sqlite_path, settings.encryption_key_file
    if path is None:
        raise ValueError("--from must be a sqlite store: sqlite:PATH")
    if file is None:
        return path, None
    try:
        return path, SealedRows(OperatorKeys(parse_keys(file.read_bytes())))
    except OSError as error:
        raise ValueError(f"encryption_key_file: cannot read {file}: {error.strerror}") from None


def _target(settings: Settings) -> "ImportTarget":
    if not settings.is_postgres:
        raise ValueError("--to must be a PostgreSQL store: postgresql://USER@HOST/DATABASE")
    try:
        from ruvd.stores.postgres.imports import ImportTarget  # noqa: PLC0415  # psycopg is optional
    except ImportError as error:
        raise ValueError(
            f"--to needs the package psycopg ({error}): install 'ruvd[postgres]'"
        ) from None
    file = settings.store_password_file
    return ImportTarget(
        settings.store,
        password=(lambda: file.read_text().strip()) if file else (lambda: ""),
        prepare=settings.store_prepares,
    )


def _run(
    path: Path,
    sealing: SealedRows | None,
    directory: Path,
    target: "ImportTarget",
    *,
    dry_run: bool,
) -> Outcome:
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        with snapshot(
            path,
            directory=directory,
            sealing=sealing,
            progress=lambda done, total: show("reading", done, total),
        ) as content:
            return _migrate(content, target, show, dry_run=dry_run)


def _migrate(
    content: Snapshot,
    target: "ImportTarget",
    show: Callable[[str, int, int], None],
    *,
    dry_run: bool,
) -> Outcome:
    with asyncio.Runner() as runner:
        try:
            runner.run(target.open(may_write=not dry_run))
            return Migration(content, target, runner, show).run(dry_run=dry_run)
        finally:
            runner.run(target.close())


def _report(outcome: Outcome, *, dry_run: bool, while_serving: bool) -> int:
    done, checked = ("would be copied", "read") if dry_run else ("copied", "compared")
    out.print(
        f"{outcome.copied:,} sessions {done}, {outcome.skipped:,} were there already;"
        f" all {checked}, with {outcome.messages:,} messages",
        markup=False,
    )
    if outcome.others:
        out.print(
            f"the target has {outcome.others:,} sessions that the source does not have",
            markup=False,
        )
    if while_serving and not dry_run:
        out.print(
            "what a daemon has stored in the source since the beginning is not in the target",
            markup=False,
        )
    for each in outcome.damaged:
        print_error(f"not copied: {each}")
    return 1 if outcome.damaged else 0
