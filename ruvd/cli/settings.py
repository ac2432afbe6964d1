"""The daemon's settings in commands that work on its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruvd.cli.console import print_error
from ruvd.config.loader import Settings, SettingsInvalid, load

_USAGE = 2


def load_settings(given: Mapping[str, Any], config: Path | None) -> Settings:
    """Returns the settings with those that are given on the command line; None is not given.

    Ends the command with exit code 2 if they are invalid.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        return load(flags, file=config)[0]
    except SettingsInvalid as error:
        print_error(str(error))
        raise SystemExit(_USAGE) from None
