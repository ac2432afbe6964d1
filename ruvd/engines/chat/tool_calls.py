"""The decoder of the tool calls in a streamed answer.

Servers differ, and each way is accepted: no index, an index that does not begin with 0 or is the
same for several calls (Gemini), an id in every fragment, even a new one in each (older vLLM), no id
at all, the same id for several calls (Kimi), arguments as an object, a name that comes late. A
fragment with a name starts a call if it cannot go on with the one before it: it has another id or
name, that call's arguments are whole, or both came in one chunk.

The caller gets an id that every other call of the answer differs from. Where that is not the
server's own, the own one is kept in the call's data, and so are fields that are not known here.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import ToolCallDelta
from ruvd.engines.chat.chunks import valid_value
from ruvd.engines.chat.engine_data import Fields, encode_data

# An id of printable characters that the API also takes from callers.
_ID = re.compile(r"[!-~]{1,256}")
_KNOWN = frozenset({"index", "id", "type", "function"})
_KNOWN_OF_FUNCTION = frozenset({"name", "arguments"})
_MAX_ID_BYTES = 1 << 14


@dataclass(slots=True)
class _Fragment:
    index: int | None
    id: str
    name: str
    arguments: str
    fields: Mapping[str, Any]
    function_fields: Mapping[str, Any]

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing of a call."""
        return not (self.id or self.name or self.arguments or self.fields or self.function_fields)


class _Call:
    """A call that is being streamed. Its first delta waits until its name is known."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = ""
        self.own_id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.fields = Fields()
        self.function_fields = Fields()
        self.chunk = 0  # the last chunk with a fragment that has a name
        self.next: _Fragment | None = None  # a name without arguments, after whole arguments

    @property
    def is_whole(self) -> bool:
        """Whether the arguments so far are a JSON object."""
        try:
            return isinstance(msgspec.json.decode("".join(self.arguments)), dict)
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
            return False


class ToolCallDecoder:
    """Decodes the tool calls of one answer. `calls` are numbered from 0."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._ids: set[str] = set()
        self._chunk = 0

    def feed(self, fragments: Any) -> list[ToolCallDelta]:
        """Returns the deltas in the fragments of one chunk. What is no fragment is left out."""
        self._chunk += 1
        out: list[ToolCallDelta] = []
        values = [fragments] if isinstance(fragments, dict) else fragments
        for value in values if isinstance(values, list) else ():
            if isinstance(value, dict):
                fragment = _fragment(valid_value(value))
                if not fragment.is_empty:
                    out += self._add(fragment)
        return out

    def check(self) -> None:
        """Raises EngineUnavailable if a call is incomplete."""
        if not all(call.name for call in self.calls):
            raise EngineUnavailable("the engine's answer makes no sense: a tool call has no name")

    def data(self, origin: str) -> dict[int, str]:
        """Returns the data of the calls that have any, by number."""
        return {call.number: data for call in self.calls if (data := _data(call, origin))}

    def _add(self, fragment: _Fragment) -> list[ToolCallDelta]:
        call = self._call_of(fragment)
        if fragment.name and call.next is None:
            call.chunk = self._chunk
        call.own_id = call.own_id or fragment.id
        call.fields.add(fragment.fields)
        call.function_fields.add(fragment.function_fields)
        if fragment.arguments:
            call.arguments.append(fragment.arguments)
        if call.name:
            arguments = fragment.arguments
            return [ToolCallDelta(call.number, arguments=arguments)] if arguments else []
        if not fragment.name:
            return []
        call.name = fragment.name
        call.id = self._id(call.own_id)
        return [ToolCallDelta(call.number, call.id, call.name, "".join(call.arguments))]

    def _id(self, own: str) -> str:
        """Returns the server's own id, or a new one if the caller cannot get that."""
        id_ = own
        if own in self._ids or not _ID.fullmatch(own):
            id_ = f"call_{secrets.token_urlsafe(18)}"
        self._ids.add(id_)
        return id_

    def _call_of(self, fragment: _Fragment) -> _Call:
        """Returns the call that a fragment belongs to, a new one if the fragment starts it."""
        call = self._continued(fragment)
        if call is not None and call.next and fragment.arguments.lstrip().startswith("{"):
            head, call.next = call.next, None
            fragment.id, fragment.name = fragment.id or head.id, fragment.name or head.name
            call = None
        elif call is not None and call.name and fragment.name and self._starts(call, fragment):
            call = None
        if call is None:
            call = _Call(len(self.calls))
            self.calls.append(call)
        if fragment.index is not None:
            self._by_index[fragment.index] = call
        return call

    def _continued(self, fragment: _Fragment) -> _Call | None:
        """Returns the call that a fragment goes on with, unless it starts a new one."""
        last = self.calls[-1] if self.calls else None
        if fragment.index is not None:
            return self._by_index.get(fragment.index)
        if not fragment.id:
            return last
        same = (call for call in reversed(self.calls) if call.own_id == fragment.id)
        return next(same, None if fragment.name else last)

    def _starts(self, call: _Call, fragment: _Fragment) -> bool:
        """Whether a fragment with a name starts a call after one that has its name."""
        if fragment.name != call.name or call.chunk == self._chunk:
            return True
        if fragment.id and fragment.id != call.own_id:
            return True
        if call.is_whole:
            if fragment.arguments.lstrip().startswith("{"):
                return True
            call.next = fragment
            return False
        is_unmarked = fragment.index is None and not fragment.id
        return is_unmarked and not "".join(call.arguments)


def _fragment(value: Mapping[str, Any]) -> _Fragment:
    function = value.get("function")
    if not isinstance(function, dict):
        function = value  # some servers leave the function's object out
    name, id_ = function.get("name"), value.get("id")
    is_flat = function is value
    return _Fragment(
        _integer(value.get("index")),
        id_[:_MAX_ID_BYTES] if isinstance(id_, str) else "" if id_ is None else str(id_)[:256],
        name if isinstance(name, str) else "",
        _text(function.get("arguments")),
        _others(value, _KNOWN | _KNOWN_OF_FUNCTION if is_flat else _KNOWN),
        {} if is_flat else _others(function, _KNOWN_OF_FUNCTION),
    )


def _others(value: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: each for name, each in value.items() if name not in known and each is not None}


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < len("1000000000"):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None


def _text(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _data(call: _Call, origin: str) -> str:
    data: dict[str, Any] = {}
    if call.own_id and call.own_id != call.id:
        data["id"] = call.own_id
    if call.fields.values:
        data["fields"] = call.fields.values
    if call.function_fields.values:
        data["function"] = call.function_fields.values
    return encode_data(data, origin)
