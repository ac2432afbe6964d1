"""Loads the settings: a flag overrides a RUVD_* variable, that ruvd.toml, and that the default.

A setting has one name in three spellings: `drain_seconds` in ruvd.toml, `--drain-seconds` and
`RUVD_DRAIN_SECONDS`. An empty variable counts as unset. An unknown key is an error that suggests
the nearest setting. Named engines are tables of ruvd.toml only (`named_engines`).
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from ruvd.config import named_engines
from ruvd.config.named_engines import NamedEngineSettings
from ruvd.config.settings import ENV_PREFIX, Settings

__all__ = [
    "ENV_PREFIX",
    "Settings",
    "SettingsInvalid",
    "load",
    "printable_values",
    "settings_file",
]

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


def settings_file(file: Path | None = None) -> Path | None:
    """Returns the settings file: `file`, RUVD_CONFIG, or ruvd.toml if it exists."""
    variable = os.environ.get("RUVD_CONFIG")
    return file or (
        Path(variable) if variable else DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    )


def load(flags: Mapping[str, Any], *, file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """Returns the settings, and the source of each by its name.

    `file` defaults to RUVD_CONFIG, then to ruvd.toml if it exists. Raises SettingsInvalid, which
    lists all errors.
    """
    found = settings_file(file)
    if found and not found.is_file():
        raise SettingsInvalid(f"the settings file {found} does not exist")
    file = found or DEFAULT_FILE
    try:
        table = TomlConfigSettingsSource(Settings, file).toml_data
    except (OSError, ValueError) as error:  # also text that is not UTF-8
        raise SettingsInvalid(f"{file}: {error}") from None
    engines, problems = named_engines.parse(table.pop(named_engines.TABLE, {}))
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
    errors += [_described(each, file) for each in problems]
    if errors:
        raise SettingsInvalid("\n".join(errors))
    sources |= dict.fromkeys(_values_of_engines(engines), str(file))
    return settings.with_engines(engines), sources


def printable_values(settings: Settings) -> dict[str, str]:
    """Returns every value as text that may be printed: secrets are hidden, and a list is written
    as its variable takes it."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    values |= _values_of_engines(settings.engines)
    return {name: _printable(value) for name, value in values.items()}


def _printable(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "(hidden)" if value.get_secret_value() else ""
    if isinstance(value, list):
        has_comma = any("," in part for part in value)
        return json.dumps(value) if has_comma else ", ".join(value)
    return "" if value is None else str(value)


def _values_of_engines(engines: Mapping[str, NamedEngineSettings]) -> dict[str, Any]:
    """Returns the values that are set of named engines, by their paths in the file."""
    return {
        f"{named_engines.TABLE}.{name}.{field}": getattr(engine, field)
        for name, engine in engines.items()
        for field in NamedEngineSettings.model_fields
        if field in engine.model_fields_set
    }


def _described(problem: named_engines.Problem, file: Path) -> str:
    path, _, field = problem.setting.rpartition(".")
    near = ""
    if problem.text == named_engines.UNKNOWN:
        match = difflib.get_close_matches(field, NamedEngineSettings.model_fields, n=1)
        near = f"; did you mean {path}.{match[0]}?" if match else ""
    return f"{problem.setting} (from {file}): {problem.text}{near}"


def _unknown_keys(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in Settings.model_fields]


def _suggestion(key: str) -> str:
    near = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
