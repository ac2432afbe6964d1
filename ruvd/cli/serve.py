"""`ruvd serve` and `ruvd config`, which have a flag for each setting."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

from cyclopts import Group, Parameter
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from ruvd.config.loader import ENV_PREFIX, Settings, SettingsInvalid, load, printable_values

_USAGE = 2
_CANNOT_LISTEN = 3
_STORE_LOCKED = 4


def _with_settings(command: Callable[[Settings, dict[str, str]], int]) -> Callable[..., int]:
    """Gives a command a flag for each setting, with its description, default and variable.

    The command gets the settings, and the source of each. Invalid settings are its exit code 2.
    """

    def run(config: Path | None = None, **flags: Any) -> int:
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            settings, sources = load(given, file=config)
        except SettingsInvalid as error:
            return _print_failure(str(error), _USAGE)
        return command(settings, sources)

    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, Parameter(help="Settings file. Default: RUVD_CONFIG, or ./ruvd.toml.")
            ],
        )
    ]
    order = list(dict.fromkeys(_group(name) for name in Settings.model_fields))
    for name, field in Settings.model_fields.items():
        if field.annotation is SecretStr:  # a command line is no place for a secret
            continue
        default = field.get_default(call_default_factory=True)
        optional: Any = Optional[field.annotation]  # noqa: UP045  # built at run time
        flag = Parameter(
            help=f"{field.description} [{ENV_PREFIX}{name.upper()}]",
            group=Group(_group(name), sort_key=order.index(_group(name))),
            show_default=_shown_default(default),
            negative=None if default is True else "",
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[optional, flag],
            )
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _shown_default(default: Any) -> Callable[[Any], str] | bool:
    """Returns the setting's default for `--help`, as the flag's own is always None."""
    if default in (None, [], ""):
        return False
    text = ", ".join(default) if isinstance(default, list) else str(default)
    return lambda _: text


def _group(name: str) -> str:
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""


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
