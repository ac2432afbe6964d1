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
from ruvd.config.loader import Settings, SettingsInvalid, load, printable_values


def _with_settings(command: Callable[[Settings, dict[str, str]], int]) -> Callable[..., int]:
    """Gives a command the settings, and the source of each. Invalid ones are its exit code 2."""

    def run(given: Mapping[str, Any], config: Path | None) -> int:
        try:
            settings, sources = load(given, file=config)
        except SettingsInvalid as error:
            return serving.fail(str(error), serving.USAGE)
        return command(settings, sources)

    return with_setting_flags(run)


@_with_settings
def serve(settings: Settings, _: dict[str, str]) -> int:
    """Runs `ruvd serve`; returns its exit code."""
    return serving.serve(settings)


@_with_settings
def config(settings: Settings, sources: dict[str, str]) -> int:
    """Runs `ruvd config`; returns its exit code."""
    table = Table("setting", "value", "source")
    for name, text in printable_values(settings).items():
        table.add_row(name, text, sources[name], style="" if sources[name] != "default" else "dim")
    Console().print(table)
    return 0
