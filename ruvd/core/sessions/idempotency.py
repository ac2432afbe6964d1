"""Idempotency: a digest of each request, so that a repeated request id can be checked.

A digest covers the fields that decide the outcome and leaves out those with their default value.
A newer daemon, whose requests have more fields, therefore still recognises older requests.
"""

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any

from ruvd.core import tenants
from ruvd.core.errors import RequestIdReused
from ruvd.core.options import ToolChoiceMode


def digest(kind: str, *parts: Any) -> bytes:
    """Returns 32 bytes that are equal for equal requests, over restarts and versions."""
    text = json.dumps([kind, *map(_plain, parts)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()


def given(*parts: str | int | None) -> tuple[str | int | None, ...]:
    """Returns parts of a digest that earlier versions did not have; none if none has a value."""
    return parts if any(part not in ("", None) for part in parts) else ()


def check(known: bytes, given: bytes, request_id: str) -> None:
    """Raises RequestIdReused if a request id comes with another request than before."""
    if known != given:
        raise RequestIdReused(
            f"request_id {tenants.own_request(request_id)!r} came with another request before; "
            "use a new id for each request and the same one only to repeat it"
        )


def _unset(field: Field[Any], value: Any) -> bool:
    # A temperature of 0 is a value, and so is False where the default is None.
    default = field.default
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(value == default)


def _plain(value: Any) -> Any:
    if isinstance(value, ToolChoiceMode):  # distinct from a tool that is named `auto`
        return [value.value]
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: _plain(part) for field, part in pairs if not _unset(field, part)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return dict(value) if hasattr(value, "items") else value
