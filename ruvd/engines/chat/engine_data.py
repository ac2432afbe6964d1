"""Data that a server needs back with its tool calls: ids, signatures, encrypted reasoning.

It is kept with the answer as JSON text that only this package reads: `from` names the server and
the model that gave it, `id` is the server's own id of a call, `fields` are fields of the call or of
the message, and `function` those of the call's function.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.chat.chunks import Delta, valid_value

# Fields of an answer that its server needs back with the result of a tool.
MESSAGE_FIELDS = (
    "reasoning_details",
    "thinking_blocks",
    "extra_content",
    "provider_specific_fields",
    "thought_signature",
    "reasoning_signature",
    "reasoning_opaque",
)
_RESERVED = frozenset(
    {
        "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal",
        "reasoning", "reasoning_content", "id", "type", "index", "function", "arguments",
    }
)  # fmt: skip
_MAX_BYTES = 512 << 10
# Texts of an item in a list that come in parts.
_TEXTS = ("text", "summary", "thinking")
_STREAMED = (*_TEXTS, "data")


class Fields:
    """Fields that come in the chunks of an answer; `values` has all of them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._size = 0

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds the fields of a chunk. Raises EngineUnavailable if they are too large."""
        if not values:
            return
        self._size += len(msgspec.json.encode(values))
        if self._size > _MAX_BYTES:
            raise EngineUnavailable(
                f"the engine's answer has more than {_MAX_BYTES} bytes that are to be sent back: "
                f"{', '.join(sorted(self.values.keys() | values.keys()))[:200]}"
            )
        for name, value in values.items():
            self.values[name] = _merged(self.values.get(name), value)


def fields_of(delta: Delta) -> dict[str, Any]:
    """Returns those of `MESSAGE_FIELDS` that a delta has."""
    found = {name: getattr(delta, name) for name in MESSAGE_FIELDS}
    return {name: valid_value(value) for name, value in found.items() if value is not None}


def origin(base_url: str, model: str) -> str:
    """Returns the name of a server with a model, which is the same after a restart."""
    return hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()[:16]


def encode_data(data: dict[str, Any], given_by: str) -> str:
    """Returns data as text, empty if there is none."""
    if not data:
        return ""
    return msgspec.json.encode({"from": given_by, **data} if given_by else data).decode()


def decode_data(text: str, given_by: str) -> Mapping[str, Any]:
    """Returns the data that is meant for a server; empty if another one gave it."""
    if not text:
        return {}
    try:
        data = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("from", given_by) != given_by:
        return {}
    return data


def returned_fields(data: Mapping[str, Any], name: str = "fields") -> dict[str, Any]:
    """Returns the fields to add to a message or call, without those that it has anyway."""
    fields = data.get(name)
    if not isinstance(fields, dict):
        return {}
    return {key: value for key, value in fields.items() if key not in _RESERVED}


def _merged(old: Any, new: Any) -> Any:
    """Joins what came in two chunks: objects by their fields, lists by their items."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        joined = list(old)
        for number, item in enumerate(new):
            if joined and _goes_on(joined[-1], item, is_first=number == 0):
                joined[-1] = _joined_item(joined[-1], item)
            else:
                joined.append(item)
        return joined
    return old if new is None else new


def _goes_on(old: Any, new: Any, *, is_first: bool) -> bool:
    """Whether an item goes on with the one before it: with the same type and index, or without an
    index the first of a chunk with more text, unless the item before has its signature."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    if old.get("index") != new.get("index"):
        return False
    is_same = old.get("type") == new.get("type") or new.get("type") is None
    if new.get("index") is not None or not is_same:
        return is_same
    has_text = any(isinstance(old.get(name), str) for name in _TEXTS)
    return is_first and has_text and not old.get("signature")


def _joined_item(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    joined = {**old, **{name: value for name, value in new.items() if value is not None}}
    for name in _STREAMED:
        if isinstance(old.get(name), str) and isinstance(new.get(name), str):
            joined[name] = old[name] + new[name]
    return joined
