"""Loads the settings: a flag overrides a RUVD_* variable, that ruvd.toml, and that the default.

A setting has one name in three spellings: `drain_seconds` in ruvd.toml, `--drain-seconds` and
`RUVD_DRAIN_SECONDS`. An empty variable counts as unset. An unknown key is an error that suggests
the nearest setting.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from ruvd.config.settings import ENV_PREFIX, Settings

__all__ = ["ENV_PREFIX", "Settings", "SettingsInvalid", "load", "printable_values"]

DEFAULT_FILE = Path("ruvd.toml")
# Read by the commands: the settings file, the addresses of the daemon, and the credentials for it.
_OTHER_VARIABLES = {
    "RUVD_CONFIG",
    "RUVD_ADDRESS",
    "RUVD_ADMIN_ADDRESS",
    "RUVD_TLS_CA_FILE",
    "RUVD_TLS_CLIENT_CERT_FILE",
    "RUVD_TLS_CLIENT_KEY_FILE",
    "RUVD_TLS_SERVER_NAME",
    "RUVD_TOKEN",
    "RUVD_TOKEN_FILE",
}
# Kubernetes sets these variables in every pod for a Service named ruvd or ruvd-something.
_SERVICE_LINKS = re.compile(r"RUVD_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)")


class SettingsInvalid(Exception):
    """The settings are invalid; the message has a line for each, with its source."""


def load(flags: Mapping[str, Any], *, file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """Returns the settings, and the source of each by its name.

    `file` defaults to RUVD_CONFIG, then to ruvd.toml if it exists. Raises SettingsInvalid, which
    lists all errors.
    """
    variable = os.environ.get("RUVD_CONFIG")
    named_file = file or (Path(variable) if variable else None)
    file = named_file or DEFAULT_FILE
    if named_file and not named_file.is_file():
        raise SettingsInvalid(f"the settings file {named_file} does not exist")
    try:
        table = TomlConfigSettingsSource(Settings, file).toml_data
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"{file}: {error}") from None
    errors = [f"{file}: {key} is not a setting{_suggestion(key)}" for key in _unknown_keys(table)]
    errors += [
        f"{name} is not a setting{_suggestion(name.removeprefix(ENV_PREFIX).lower())}"
        for name, value in os.environ.items()
        if name.startswith(ENV_PREFIX)
        and value
        and name not in _OTHER_VARIABLES
        and not _SERVICE_LINKS.fullmatch(name)
        and _unknown_keys([name.removeprefix(ENV_PREFIX).lower()])
    ]
    sources = dict.fromkeys(Settings.model_fields, "default")
    sources |= {key: str(file) for key in table}
    variables = EnvSettingsSource(Settings, env_ignore_empty=True)()
    sources |= {key: ENV_PREFIX + key.upper() for key in variables}
    sources |= {key: "--" + key.replace("_", "-") for key in flags}
    try:
        known = {key: table[key] for key in table if key in Settings.model_fields}
        settings = Settings(**{**known, **variables, **flags})
    except ValidationError as error:
        for problem in error.errors():
            text = problem["msg"].removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            errors.append(f"{name} (from {sources[name]}): {text}" if name else text)
    if errors:
        raise SettingsInvalid("\n".join(errors))
    return settings, sources


def printable_values(settings: Settings) -> dict[str, str]:
    """Returns every value as text that may be printed: secrets are hidden, and a list is written
    as its variable takes it."""
    texts = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            texts[name] = "(hidden)" if value.get_secret_value() else ""
        elif isinstance(value, list):
            has_comma = any("," in part for part in value)
            texts[name] = json.dumps(value) if has_comma else ", ".join(value)
        else:
            texts[name] = "" if value is None else str(value)
    return texts


def _unknown_keys(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in Settings.model_fields]


def _suggestion(key: str) -> str:
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
