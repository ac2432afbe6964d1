"""`ruvd serve` without the command line's libraries, for plain flags and their values.

Anything else, `--help` or a mistake, is left to the full parser. Its libraries would stay in the
daemon's memory: 6 MB, and a quarter of the CPU time until the daemon listens.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ruvd.cli import serving

_INTEGER = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def try_quick(arguments: Sequence[str]) -> int | None:
    """Runs `ruvd serve`; returns its exit code, or None if the full parser has to run it."""
    if arguments[:1] != ["serve"]:
        return None
    with serving.collector_paused():
        from ruvd.config.loader import SettingsInvalid, load, settings_file

        flags = plain_flags(arguments[1:])
    if flags is None:
        return None
    file = settings_file(flags.pop("config", None))
    try:
        settings, _ = load(flags, file=file)
    except SettingsInvalid as error:
        return serving.fail(str(error), serving.USAGE)
    return serving.serve(settings, lambda: load(flags, file=file)[0])


def plain_flags(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Returns the values of the flags by the names of the settings, None if one is not plain."""
    from ruvd.config.settings import Settings

    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    return _parsed({"config": Path, **kinds}, arguments)


def _parsed(kinds: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any] | None:
    flags: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        if not equals:
            text = next(rest, "")
        name = flag.removeprefix("--").replace("-", "_")
        # The full parser knows what a value means that is empty or looks like a flag or a list.
        is_plain = flag == "--" + name.replace("_", "-") and text and text[0] not in "-[{"
        value = _value(kinds.get(name), text) if is_plain else None
        if value is None or (name in flags and not isinstance(value, list)):
            return None
        flags[name] = [*flags.get(name, ()), *value] if isinstance(value, list) else value
    return flags


def _value(kind: Any, text: str) -> Any:
    """Returns the value of a text, or None if it is not plain."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else None
    if kind == list[str]:
        return [text]
    if kind is int:
        return int(text) if _INTEGER.fullmatch(text) else None
    if kind is float:
        return float(text) if _NUMBER.fullmatch(text) else None
    return kind(text) if kind in (str, Path) else None
