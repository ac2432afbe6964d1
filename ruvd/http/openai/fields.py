"""Reading of JSON values, which collects every wrong field by its path instead of the first."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ruvd.core.errors import FieldViolation, InvalidRequest

T = TypeVar("T")
_MAX_VIOLATIONS = 100
_INT32 = range(-(2**31), 2**31)


class Fields:
    """The violations of a request so far. A value that is wrong is read as a neutral one."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def refuse(self, path: str, text: str) -> None:
        """Adds a violation."""
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(FieldViolation(path, text))

    def merge(self, more: Iterable[FieldViolation]) -> None:
        """Adds violations of fields that are not known to be wrong yet."""
        wrong = [each.field for each in self.violations]
        for each in more:
            at = each.field
            if not any(_is_within(at, path) or _is_within(path, at) for path in wrong):
                self.refuse(each.field, each.description)

    def raise_if_wrong(self) -> None:
        """Raises InvalidRequest with all violations, if there are any."""
        if self.violations:
            raise InvalidRequest(self.violations)

    def text(self, value: Any, path: str) -> str:
        """Reads a text that can be sent as UTF-8."""
        if not isinstance(value, str):
            self.refuse(path, f"must be a string, not {kind(value)}")
            return ""
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.refuse(path, "contains an unpaired surrogate")
            return ""
        return value

    def number(self, value: Any, path: str) -> float | None:
        """Reads a number."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
            self.refuse(path, "must be a finite number of double precision")
            return None
        self.refuse(path, f"must be a number, not {kind(value)}")
        return None

    def integer(self, value: Any, path: str, within: range = _INT32) -> int | None:
        """Reads an integer within a range."""
        if isinstance(value, int) and not isinstance(value, bool) and value in within:
            return value
        self.refuse(path, f"must be an integer from {within.start} to {within.stop - 1}")
        return None

    def flag(self, value: Any, path: str) -> bool | None:
        """Reads true or false."""
        if isinstance(value, bool):
            return value
        self.refuse(path, f"must be true or false, not {kind(value)}")
        return None

    def items(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Yields the paths and the values of a list."""
        if not isinstance(value, list):
            self.refuse(path, f"must be a list, not {kind(value)}")
            return
        for index, each in enumerate(value):
            yield f"{path}[{index}]", each

    def object(self, value: Any, path: str) -> dict[str, Any]:
        """Returns a copy of an object, from which fields are popped as they are read."""
        if isinstance(value, dict):
            return dict(value)
        self.refuse(path, f"must be an object, not {kind(value)}")
        return {}

    def optional(
        self, fields: dict[str, Any], name: str, path: str, read: Callable[[Any, str], T]
    ) -> T | None:
        """Pops and reads a field; None if it is not there or null."""
        value = fields.pop(name, None)
        return None if value is None else read(value, join(path, name))

    def schema(self, value: Any, path: str) -> str:
        """Returns an object as JSON text."""
        return self.text(json.dumps(self.object(value, path), ensure_ascii=False), path)

    def choice(self, value: Any, path: str, names: Iterable[str]) -> str | None:
        """Reads one of some names."""
        if isinstance(value, str) and value in names:
            return value
        self.refuse(path, f"must be {' or '.join(names)}, not {shown(value)}")
        return None

    def refuse_rest(self, fields: dict[str, Any], path: str) -> None:
        """Refuses the fields that are left and not empty, as null, [] and {} are."""
        for name, value in fields.items():
            if value is not None and value not in ("", [], {}):
                self.refuse(join(path, clean(name)), "is not supported")


def join(path: str, name: str) -> str:
    """Returns the path of a field of the object at a path."""
    return f"{path}.{name}" if path else name


def clean(name: str) -> str:
    """Returns a name from a request as it may be shown."""
    return name[:100].encode("ascii", "backslashreplace").decode()


def kind(value: Any) -> str:
    """Returns the name of a JSON value's type."""
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Returns a short form of a value, for an error text."""
    return repr(clean(value)) if isinstance(value, str) else kind(value)


def _is_within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))
