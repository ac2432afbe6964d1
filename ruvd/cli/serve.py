"""`ruvd serve` and `ruvd config`, which have a flag for each setting.

With plain flags `ruvd serve` runs without this module, see `quick_serve`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ruvd.cli import serving
from ruvd.cli.setting_flags import with_setting_flags
from ruvd.config.loader import Settings, SettingsInvalid, load, printable_values, settings_file

Load = Callable[[], tuple[Settings, dict[str, str]]]


def _with_settings(command: Callable[[Load], int]) -> Callable[..., int]:
    """Gives a command what loads the settings, with the source of each.

    Invalid ones are its exit code 2.
    """

    def run(given: Mapping[str, Any], config: Path | None) -> int:
        # A file that is gone when the settings are read again is an error, and not an empty one.
        file = settings_file(config)
        try:
            return command(lambda: load(given, file=file))
        except SettingsInvalid as error:
            return serving.fail(str(error), serving.USAGE)

    return with_setting_flags(run)


@_with_settings
def serve(load_settings: Load) -> int:
    """Runs `ruvd serve`; returns its exit code."""
    return serving.serve(load_settings()[0], lambda: load_settings()[0])


@_with_settings
def config(load_settings: Load) -> int:
    """Runs `ruvd config`; returns its exit code."""
    settings, sources = load_settings()
    table = Table("setting", "value", "source")
    for name, text in printable_values(settings).items():
        table.add_row(name, text, sources[name], style="" if sources[name] != "default" else "dim")
    Console().print(table)
    return 0
