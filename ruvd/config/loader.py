"""The settings in force: flag > RUVD_* variable > ruvd.toml > default.

One setting has one name in four spellings: `drain_seconds` in `ruvd.config.settings` and in
ruvd.toml, `--drain-seconds`, `RUVD_DRAIN_SECONDS`. A key that is none is an error that suggests the
nearest.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from ruvd.config.settings import ENV_PREFIX, Settings

__all__ = ["ENV_PREFIX", "Settings", "SettingsInvalid", "load", "shown"]

DEFAULT_FILE = Path("ruvd.toml")
# Not settings of the daemon, but ours: where the clients look for it, and where its file is.
_OTHER_VARIABLES = {"RUVD_ADDRESS", "RUVD_CONFIG"}
# Kubernetes gives every pod these for a Service that is named ruvd, or ruvd-something.
_SERVICE_LINKS = re.compile(r"RUVD_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)")


class SettingsInvalid(Exception):
    """Settings that cannot be used; the message names each and its source."""


def load(flags: Mapping[str, Any], *, file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings in force, and by name the source of each.

    `file` defaults to RUVD_CONFIG, then to ruvd.toml if there is one. Raises SettingsInvalid with
    everything that is wrong.
    """
    given_file = file or (Path(os.environ["RUVD_CONFIG"]) if "RUVD_CONFIG" in os.environ else None)
    file = given_file or DEFAULT_FILE
    if given_file and not given_file.is_file():
        raise SettingsInvalid(f"there is no settings file {given_file}")
    try:
        table = TomlConfigSettingsSource(Settings, file).toml_data
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"{file}: {error}") from None
    wrong = [f"{file}: {key} is no setting{_nearest(key)}" for key in _strangers(table)]
    wrong += [
        f"{name} is no setting{_nearest(name.removeprefix(ENV_PREFIX).lower())}"
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name not in _OTHER_VARIABLES
        and not _SERVICE_LINKS.fullmatch(name)
        and _strangers([name.removeprefix(ENV_PREFIX).lower()])
    ]
    sources = dict.fromkeys(Settings.model_fields, "default")
    sources |= {key: str(file) for key in table}
    variables = EnvSettingsSource(Settings)()
    sources |= {key: ENV_PREFIX + key.upper() for key in variables}
    sources |= {key: "--" + key.replace("_", "-") for key in flags}
    try:
        known = {key: table[key] for key in table if key in Settings.model_fields}
        settings = Settings(**{**known, **variables, **flags})
    except ValidationError as error:
        for problem in error.errors():
            text = problem["msg"].removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            wrong.append(f"{name} (from {sources[name]}): {text}" if name else text)
    if wrong:
        raise SettingsInvalid("\n".join(wrong))
    return settings, sources


def shown(settings: Settings) -> dict[str, str]:
    """Every value as text that may be printed: secrets are hidden, lists have commas."""
    texts = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            texts[name] = "(hidden)" if value.get_secret_value() else ""
        elif isinstance(value, list):
            texts[name] = ", ".join(value)
        else:
            texts[name] = "" if value is None else str(value)
    return texts


def _strangers(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in Settings.model_fields]


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
