"""Validation of the JSON Schemas and grammars that an answer must follow.

llama.cpp turns a schema into a grammar. Some small ones take gigabytes, or stop all its answers for
minutes, so their breadth, their repetitions and their patterns are bounded here, for every engine.
The figures were measured on 2 cores with SmolLM2-135M. A grammar can still be ambiguous in ways
that only show as the answer grows; then the limits on the engine's memory and silence hold.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ruvd.rpc import validation
from ruvd.rpc.grammar_extent import MAX_REPETITIONS, Extent, of_gbnf, of_pattern
from ruvd.rpc.validation import Checker

MAX_DEPTH = 32
# A grammar grows with the square of a schema's breadth: 20,000 properties took 6.8 GB.
# 5,000 long constants stop all answers for 23 s, 1,000 for 2 s and take up to 0.2 GB.
_MAX_VALUES = 1000
# 20,000 properties in 20 tools stop all answers for 11 s, 4,000 in 4 tools for 2 s.
_MAX_TOGETHER = 4000
# 25 schemas, each with two references to the next, have 33 million values and take 6 s; a hundred
# take for ever.
_MAX_REFERENCED_VALUES = 100_000
# A string of at most 1,999 characters is as many rules: 480,000 take 130 MB, 40,000 take 11 MB.
_MAX_LENGTHS = 40_000
_MAX_GRAMMAR_BYTES = 32 << 10
# 16 bytes each.
_MAX_EXTENT = 1_000_000
# The time of a token grows with more than the third power of such a row: 0.5 s for 30, 5 s for 50.
_MAX_OPTIONAL = 30
# 12,000 stop all answers for 2 s a token.
_MAX_ALTERNATIVES = 1000
_MAX_PATTERN_BYTES = 2000
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems")


def text(check: Checker, field: str, given: str) -> int:
    """Checks that a text is a JSON object that every engine can read. Returns its values."""
    if len(given.encode()) > check.limits.max_message_bytes:
        validation.text(check, field, given)
        return 0
    try:
        parsed = json.loads(given, parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        check.refuse(field, f"is nested deeper than {MAX_DEPTH}")
    except ValueError as error:
        check.refuse(field, f"must be a JSON Schema: {error}")
    else:
        check.check(isinstance(parsed, dict), field, "must be a JSON Schema: an object")
        return schema(check, field, parsed)
    return 0


def schema(check: Checker, field: str, parsed: Any) -> int:
    """Checks that a schema is not too large. Returns the number of its values."""
    depth, count = _shape(parsed)
    check.check(depth <= MAX_DEPTH, field, f"is nested deeper than {MAX_DEPTH}")
    too_many = f"has {count} values, the limit is {_MAX_VALUES}"
    check.check(count <= _MAX_VALUES, field, too_many)
    if depth <= MAX_DEPTH and count <= _MAX_VALUES:
        _written_out(check, field, parsed)
    return count


def together(check: Checker, field: str, values: int) -> None:
    """Checks the sum of the values of all schemas of a field."""
    check.check(
        values <= _MAX_TOGETHER,
        field,
        f"the schemas have {values} values together, the limit is {_MAX_TOGETHER}",
    )


def grammar(check: Checker, field: str, given: Any) -> None:
    """Checks that a grammar in llama.cpp's notation (GBNF) is not too large."""
    if not isinstance(given, str):
        return  # the server refuses it
    if len(given.encode()) > _MAX_GRAMMAR_BYTES:
        check.refuse(field, f"has more than {_MAX_GRAMMAR_BYTES} bytes")
    elif not given.startswith("%llguidance"):  # a notation with limits of its own
        alternatives = given.count("|")
        too_many = f"has more than {_MAX_ALTERNATIVES} alternatives"
        check.check(alternatives <= _MAX_ALTERNATIVES, field, too_many)
        _extent(check, field, of_gbnf(given))


def triggers(check: Checker, field: str, given: Any) -> None:
    """Checks the texts and patterns that turn a grammar on."""
    if isinstance(given, list):
        values = [each.get("value") for each in given if isinstance(each, dict)]
        _patterns(check, field, [value for value in values if isinstance(value, str)])


def _written_out(check: Checker, field: str, parsed: Any) -> None:
    """Checks what the server writes out: references, lengths and patterns."""
    count = _referenced_values(parsed)
    too_many = f"has more than {_MAX_REFERENCED_VALUES} values when its references are followed"
    check.check(count <= _MAX_REFERENCED_VALUES, field, too_many)
    lengths, patterns = 0.0, []
    for each in _objects(parsed):
        for name in _LENGTHS:
            value = each.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                lengths += min(max(value, 0), MAX_REPETITIONS)
        if isinstance(pattern := each.get("pattern"), str):
            patterns.append(pattern)
    check.check(
        lengths <= _MAX_LENGTHS,
        field,
        f"the sum of {', '.join(_LENGTHS)} is above {_MAX_LENGTHS}, where each counts up to "
        f"{MAX_REPETITIONS}",
    )
    _patterns(check, field, patterns)


def _patterns(check: Checker, field: str, patterns: Sequence[str]) -> None:
    size = sum(len(pattern.encode()) for pattern in patterns)
    if size > _MAX_PATTERN_BYTES:
        check.refuse(field, f"the patterns have more than {_MAX_PATTERN_BYTES} bytes")
        return
    for pattern in patterns:
        _extent(check, field, of_pattern(pattern))


def _extent(check: Checker, field: str, extent: Extent) -> None:
    check.check(extent.depth <= MAX_DEPTH, field, f"is nested deeper than {MAX_DEPTH}")
    too_large = f"has more than {_MAX_EXTENT} characters when it is written out"
    check.check(extent.size <= _MAX_EXTENT, field, too_large)
    too_many = f"has more than {_MAX_OPTIONAL} elements in a row that may be empty"
    check.check(extent.longest <= _MAX_OPTIONAL, field, too_many)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses duplicate names, because JSON parsers differ in the one that they take."""
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("an object has the same name twice")
    return named


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _shape(parsed: Any) -> tuple[int, int]:
    """Returns the number of levels of JSON, at most MAX_DEPTH + 1, and of the values in them."""
    level, count = [parsed], 0
    for depth in range(MAX_DEPTH + 1):
        if not level:
            return depth, count
        count += len(level)
        level = [child for value in level for child in _children(value)]
    return MAX_DEPTH + 1, count


def _objects(parsed: Any) -> Iterator[dict[str, Any]]:
    pending = [parsed]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
        pending += _children(value)


def _referenced_values(parsed: Any) -> int:
    """Returns the number of values with all references followed, each once within itself."""
    sizes: dict[int, int] = {}  # by the identity of a list or object
    pending = [(parsed, False)]
    while pending:
        value, has_children = pending.pop()
        children = _children(value)
        if isinstance(value, dict) and isinstance(path := value.get("$ref"), str):
            children = [*children, _target(parsed, path)]
        if has_children:
            sizes[id(value)] = 1 + sum(sizes.get(id(child), 1) for child in children)
        elif id(value) not in sizes:
            sizes[id(value)] = 1  # within itself
            pending.append((value, True))
            pending += [(child, False) for child in children if isinstance(child, dict | list)]
    return sizes[id(parsed)]


def _target(parsed: Any, path: str) -> Any:
    """Returns the value that a reference such as `#/$defs/name` names, or None."""
    target = parsed
    for part in path.removeprefix("#").split("/")[1 : MAX_DEPTH + 1]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict):
            target = target.get(name)
        elif isinstance(target, list) and name.isdecimal() and int(name[:6]) < len(target):
            target = target[int(name[:6])]
        else:
            return None
    return target
