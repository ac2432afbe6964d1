"""A flag for each setting of the daemon, for the commands that take them all.

This module must not import grpc, because `ruvd serve` has to set a variable before that.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, TypeAlias

from cyclopts import Group, Parameter
from pydantic import SecretStr

from ruvd.config.loader import ENV_PREFIX, Settings

ConfigFile: TypeAlias = Annotated[
    Path | None, Parameter(help="Settings file. Default: RUVD_CONFIG, or ./ruvd.toml.")
]


def with_setting_flags(command: Callable[..., int], *more: inspect.Parameter) -> Callable[..., int]:
    """Gives a command a flag for each setting, with its description, default and variable.

    `command` is called with the flags that are given, as a mapping, and the settings file. `more`
    are parameters of its own, which it gets after these.
    """

    def run(*words: Any, config: Path | None = None, **flags: Any) -> int:
        own = [
            flags.pop(each.name, each.default) for each in more if each.kind is each.KEYWORD_ONLY
        ]
        given = {name: value for name, value in flags.items() if value is not None}
        return command(given, config, *own, *words)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *more,
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFile),
        *(
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in _flags().items()
        ),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def command_line(given: Mapping[str, Any], config: Path | None) -> Sequence[str]:
    """Returns the words of a command line that give these flags, as a command has parsed them."""
    words = [] if config is None else [f"--config={config}"]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}={each}" for each in values]
    return words


def _flags() -> Mapping[str, Any]:
    """Returns the annotations of the flags by their settings' names."""
    order = list(dict.fromkeys(_group(name) for name in Settings.model_fields))
    return {
        name: Annotated[
            Optional[field.annotation],  # noqa: UP045  # built at run time
            Parameter(
                help=f"{field.description} [{ENV_PREFIX}{name.upper()}]",
                group=Group(_group(name), sort_key=order.index(_group(name))),
                show_default=_shown_default(field.get_default(call_default_factory=True)),
                negative=None if field.default is True else "",
            ),
        ]
        for name, field in Settings.model_fields.items()
        if field.annotation is not SecretStr  # a command line is no place for a secret
    }


def _shown_default(default: Any) -> Callable[[Any], str] | bool:
    """Returns the setting's default for `--help`, as the flag's own is always None."""
    if default in (None, [], ""):
        return False
    text = ", ".join(default) if isinstance(default, list) else str(default)
    return lambda _: text


def _group(name: str) -> str:
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""
