"""Values of lines in OpenAI's format, and messages written in it. Pure functions over JSON values.

Reasoning is `reasoning_content`, as servers of open models call it. A field that ruvd does not have
is refused, unless it is empty. Messages are read by `openai_conversation`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from ruvd_client import Message, Role

T = TypeVar("T")
# Reads the value at a path in the line. Raises LineRefused.
Reader: TypeAlias = Callable[[Any, str], T]

# Valid in JSON text, but a terminal may act on them, and some readers split lines at them.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")


class LineRefused(Exception):
    """A line is invalid; the message says why, and `path` names the field."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path


class Reading:
    """The rule for parts of a line that ruvd cannot keep: refused, or if `lenient` left out.

    `left_out` names what was left out.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.left_out: list[str] = []

    def leave_out(self, path: str, reason: str) -> None:
        """Notes that a part is left out. Raises LineRefused unless lenient."""
        refusal = LineRefused(path, reason)
        if not self.lenient:
            raise refusal
        self.left_out.append(str(refusal))

    @contextmanager
    def part(self) -> Iterator[None]:
        """Leaves out what is read in this context if it is refused. Raises as `leave_out`."""
        try:
            yield
        except LineRefused as refusal:
            if not self.lenient:
                raise
            self.left_out.append(str(refusal))

    def refuse_rest(self, fields: Mapping[str, Any], path: str) -> None:
        """Leaves out each remaining field that is not empty, as null and [] are."""
        for name, value in fields.items():
            if value is not None and value not in ("", [], {}):
                self.leave_out(f"{path}{name}", "is not supported by ruvd")


def escape_line(json_text: str) -> str:
    """Escapes characters of JSON text that a terminal or a line reader may act on."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def to_openai(message: Message) -> dict[str, Any]:
    """Returns the message in OpenAI's format, without empty fields except the content."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
            **({"engine_data": call.engine_data} if call.engine_data else {}),
        }
        for call in message.tool_calls
    ]
    fields: dict[str, Any] = {
        "role": Role.Name(message.role).removeprefix("ROLE_").lower(),
        "content": None if calls and not message.content else message.content,
    }
    more = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "engine_data": message.engine_data,
        "pinned": message.pinned,
    }
    return fields | {name: value for name, value in more.items() if value}


def read_object(value: Any, path: str) -> dict[str, Any]:
    """Returns a copy of the object, to pop fields from. Raises LineRefused."""
    if not isinstance(value, dict):
        raise LineRefused(path, "must be an object")
    return dict(value)


def read_list(value: Any, path: str, read: Reader[T]) -> list[T]:
    """Reads each value of a list. Raises LineRefused."""
    if not isinstance(value, list):
        raise LineRefused(path, "must be a list")
    return [read(each, f"{path}[{index}]") for index, each in enumerate(value)]


def read_fields(
    fields: dict[str, Any], readers: Mapping[str, Reader[Any]], path: str
) -> dict[str, Any]:
    """Pops and reads the fields that have a reader and are not null. Raises LineRefused."""
    given = [name for name in readers if fields.get(name) is not None]
    return {name: readers[name](fields.pop(name), f"{path}.{name}") for name in given}


def read_text(value: Any, path: str) -> str:
    """Returns a string that can be sent as UTF-8. Raises LineRefused."""
    if not isinstance(value, str):
        raise LineRefused(path, "must be a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise LineRefused(path, "contains an unpaired surrogate")
    return value


def refuse_rest(fields: Mapping[str, Any], path: str) -> None:
    """Raises LineRefused for a remaining field that is not empty, as null and [] are."""
    Reading().refuse_rest(fields, path)
