"""`ruvd serve` and `ruvd config`, which have a flag for each setting."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ruvd.cli.setting_flags import with_setting_flags
from ruvd.config.loader import Settings, SettingsInvalid, load, printable_values

_USAGE = 2
_CANNOT_LISTEN = 3
_STORE_LOCKED = 4


def _with_settings(command: Callable[[Settings, dict[str, str]], int]) -> Callable[..., int]:
    """Gives a command the settings, and the source of each. Invalid ones are its exit code 2."""

    def run(given: Mapping[str, Any], config: Path | None) -> int:
        try:
            settings, sources = load(given, file=config)
        except SettingsInvalid as error:
            return _print_failure(str(error), _USAGE)
        return command(settings, sources)

    return with_setting_flags(run)


@_with_settings
def serve(settings: Settings, _: dict[str, str]) -> int:
    """Runs `ruvd serve`; returns its exit code."""
    # Imported only now, so that invalid settings are reported at once.
    from ruvd.core.ports.store import StoreLocked, StoreSealed
    from ruvd.rpc.watched_files import FilesInvalid
    from ruvd.server import logs, runtime_tuning
    from ruvd.server.daemon import Daemon
    from ruvd.server.unix_socket import AddressUnavailable

    logs.configure(settings.log_level, settings.log_format)
    runtime_tuning.tune_allocator()
    runtime_tuning.tune_interpreter()

    async def run() -> int:
        return await Daemon(settings).run()

    try:
        with runtime_tuning.event_loop_runner() as runner:
            return runner.run(run())
    except (FilesInvalid, StoreSealed) as error:
        return _print_failure(str(error), _USAGE)
    except AddressUnavailable as error:
        return _print_failure(str(error), _CANNOT_LISTEN)
    except StoreLocked as error:
        return _print_failure(str(error), _STORE_LOCKED)


@_with_settings
def config(settings: Settings, sources: dict[str, str]) -> int:
    """Runs `ruvd config`; returns its exit code."""
    table = Table("setting", "value", "source")
    for name, text in printable_values(settings).items():
        table.add_row(name, text, sources[name], style="" if sources[name] != "default" else "dim")
    Console().print(table)
    return 0


def _print_failure(message: str, code: int) -> int:
    Console(stderr=True).print(f"ruvd: {message}", style="red", markup=False, highlight=False)
    return code
