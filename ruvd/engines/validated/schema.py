"""A JSON Schema, and the check of an answer against it, by the library jsonschema.

The library has no bounds: a schema of a few lines can take it hours. So every keyword that it looks
at first checks the time that this thread has computed, and a check that takes too long is given
up. Patterns are JavaScript's, as the standard says (`patterns`). A reference is resolved in the
schema itself, and nothing is fetched.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias

from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend, validator_for
from referencing import Registry, Specification
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, specification_with

from ruvd.engines.validated.formats import FORMATS
from ruvd.engines.validated.patterns import PatternRefused, TooSlow, compiled

_Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

_MAX_SECONDS = 3.0
_MAX_SHOWN = 100
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_end: ContextVar[float] = ContextVar("end")


class SchemaRefused(Exception):
    """Answers cannot be checked against the schema; the message says why."""


class AnswerSchema:
    """A schema, compiled from its text. Blocks. Raises SchemaRefused."""

    def __init__(self, text: str) -> None:
        try:
            schema: Any = json.loads(text)
            if not isinstance(schema, dict):
                raise SchemaRefused("must be a JSON Schema: an object")
            dialect: Any = validator_for(schema, default=Draft202012Validator)
            dialect.check_schema(schema, format_checker=FormatChecker(()))
            schema.pop("$schema", None)  # it would choose the library's own class again
            _check_parts(schema, _specification(dialect))
        except SchemaError as error:
            text = f"is no valid JSON Schema: {_place(error)}: {error.message[:_MAX_SHOWN]}"
            raise SchemaRefused(text) from None
        except (ValueError, RecursionError) as error:
            raise SchemaRefused(f"must be a JSON Schema: {error}") from None
        keywords = {**dialect.VALIDATORS, **_KEYWORDS}
        bounded: Any = extend(  # type: ignore[no-untyped-call]
            dialect, {name: _bounded(check) for name, check in keywords.items()}
        )
        self._validator = bounded(schema, registry=Registry())

    def problem_of(self, answer: str) -> str:
        """Returns why an answer does not follow the schema, empty if it does. Blocks."""
        try:
            value = json.loads(answer, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return "is no JSON, although JSON was asked for"
        _end.set(time.thread_time() + _MAX_SECONDS)
        try:
            error = next(self._validator.iter_errors(value), None)
        except TooSlow:
            return "cannot be checked against the JSON Schema: it takes too long"
        except (RecursionError, ArithmeticError, Unresolvable, PatternRefused):
            return "cannot be checked against the JSON Schema, for example because it is too deep"
        if error is None:
            return ""
        return f"does not follow the JSON Schema: {_place(error)} {_rule(error)}"


def _place(error: ValidationError | SchemaError) -> str:
    return f"the value at {error.json_path[:_MAX_SHOWN]}"


def _rule(error: ValidationError) -> str:
    """Returns the rule that is broken. The value is left out, because answers are private."""
    if not error.validator:  # a schema of false
        return "is not allowed"
    rule = json.dumps(error.validator_value, ensure_ascii=False, default=str)
    if len(rule) > _MAX_SHOWN:
        rule = f"{rule[:_MAX_SHOWN]} ..."
    return f"breaks the rule {json.dumps(error.validator)}: {rule}"


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


# --- the schema before it is used --------------------------------------------------------------


def _specification(dialect: Any) -> Specification[Any]:
    known = dialect.META_SCHEMA.get("$id") or dialect.META_SCHEMA.get("id")
    return specification_with(known, default=DRAFT202012)


def _check_parts(schema: Any, specification: Specification[Any]) -> None:
    """Raises SchemaRefused for a pattern or a reference that cannot be followed."""
    root = specification.create_resource(schema)
    base = root.id() or ""
    registry: Registry[Any] = Registry().with_resource(base, root)
    pending: list[tuple[Any, Any]] = [(schema, registry.resolver(base))]
    seen: set[int] = set()
    looks_at_the_rest = names_by_pattern = False
    while pending:
        part, resolver = pending.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        if "$schema" in part:
            raise SchemaRefused("has another $schema inside")
        looks_at_the_rest |= "unevaluatedProperties" in part
        names_by_pattern |= "patternProperties" in part
        _check_patterns(part)
        for name in _REFERENCES:
            if isinstance(reference := part.get(name), str):
                try:
                    found = resolver.lookup(reference)
                except Unresolvable:
                    text = f"has a {name} that is not in this schema: {reference[:_MAX_SHOWN]!r}"
                    raise SchemaRefused(text) from None
                pending.append((found.contents, found.resolver))
        for inner in specification.subresources_of(part):
            if isinstance(inner, Mapping):
                inner_resource = specification.create_resource(inner)
                pending.append((inner, resolver.in_subresource(inner_resource)))
    if looks_at_the_rest and names_by_pattern:
        # The library would search with patterns of Python and without a limit.
        raise SchemaRefused("has both unevaluatedProperties and patternProperties")


def _check_patterns(part: Mapping[str, Any]) -> None:
    patterns = [part["pattern"]] if "pattern" in part else []
    if isinstance(named := part.get("patternProperties"), Mapping):
        patterns += named
    for pattern in patterns:
        if isinstance(pattern, str):
            try:
                compiled(pattern)
            except PatternRefused as refusal:
                raise SchemaRefused(str(refusal)) from None


# --- the keywords that the library checks in its own way ---------------------------------------


def _bounded(check: _Keyword) -> _Keyword:
    def keyword(
        validator: Any, rule: Any, value: Any, schema: Any
    ) -> Iterator[ValidationError] | None:
        if time.thread_time() > _end.get():
            raise TooSlow
        return check(validator, rule, value, schema)

    return keyword


def _pattern(_: Any, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not compiled(rule).occurs_in(value):
        yield ValidationError("pattern")


def _pattern_properties(validator: Any, rule: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(value, dict):
        for pattern, schema in rule.items():
            for name, each in value.items():
                if compiled(pattern).occurs_in(name):
                    yield from validator.descend(each, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, rule: Any, value: Any, schema: Any
) -> Iterator[ValidationError]:
    if isinstance(value, dict):
        patterns = [compiled(pattern) for pattern in schema.get("patternProperties", ())]
        for name, each in value.items():
            known = name in schema.get("properties", ())
            if not known and not any(pattern.occurs_in(name) for pattern in patterns):
                yield from validator.descend(each, rule, path=name)


def _unique_items(_: Any, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if rule and isinstance(value, list):
        texts = {json.dumps(_canonical(each), sort_keys=True) for each in value}
        if len(texts) < len(value):
            yield ValidationError("uniqueItems")


def _canonical(value: Any) -> Any:
    """Returns the value with whole numbers as integers: JSON's 1 and 1.0 are equal."""
    if isinstance(value, dict):
        return {name: _canonical(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _format(_: Any, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    check = FORMATS.get(rule)
    if check is not None and isinstance(value, str) and not check(value):
        yield ValidationError("format")


_KEYWORDS: Mapping[str, _Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    "format": _format,
}
