"""The parts of which settings are made: fields with their group, lists, and optional paths."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

_JSON_ARRAY = re.compile(r'\s*\[\s*["\]]')


def setting(group: str, default: Any, description: str, **limits: Any) -> Any:
    """Returns the field of a setting, which the documentation shows in its group."""
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def values(value: Any) -> Any:
    """Splits the text of a list-valued setting at commas, unless it is a JSON array of strings.

    An IPv6 address also begins with a bracket, but not with a bracket and a quote. Anything but a
    text is returned as it is.
    """
    if not isinstance(value, str):
        return value
    if not _JSON_ARRAY.match(value):
        return [part.strip() for part in value.split(",")] if value.strip() else []
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"is no JSON array: {error}") from None


def none_if_empty(value: Any) -> Any:
    """Returns None for an empty text, which as a path would be the working directory."""
    return None if value == "" else value


Texts: TypeAlias = Annotated[list[str], NoDecode, BeforeValidator(values)]
"""A list of texts, with commas between them in a variable."""

OptionalPath: TypeAlias = Annotated[Path | None, BeforeValidator(none_if_empty)]
"""A path, or None if it is unset or empty."""
