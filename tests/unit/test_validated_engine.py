"""Structured answers: which schemas are refused, which answers fail, and what stays as it is."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from typing import Any

import pytest
from fakes import ScriptedEngine, Step
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.errors import InvalidRequest, SchemaViolated
from ruvd.core.model import FinishReason, Message, Role
from ruvd.core.options import CompletionOptions, ResponseFormat
from ruvd.core.ports.engine import Engine, EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.core.ports.engine_wrapper import EngineWrapper
from ruvd.engines.validated.engine import ValidatedEngine
from ruvd.engines.validated.patterns import Pattern, PatternRefused
from ruvd.engines.validated.schema import AnswerSchema, SchemaRefused

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LIST = {"$ref": "#/$defs/l", "$defs": {"l": {"properties": {"next": {"$ref": "#/$defs/l"}}}}}
# Each level doubles the work: 2 to the power of 30 checks.
COSTLY = {
    "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    | {"d30": False},
    "$ref": "#/$defs/d0",
}
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def problem(schema: Any, answer: Any) -> str:
    return AnswerSchema(json.dumps(schema)).problem_of(json.dumps(answer))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": r"^\d{4}$"}, "2026", "2026\n"),
        ({"pattern": r"^\d+$"}, "12", "\u0663"),
        ({"pattern": r"^\w+$"}, "a_1", "é"),
        ({"pattern": r"^\p{L}+$"}, "é", "é1"),
        ({"pattern": r"^\P{Lu}$"}, "a", "A"),
        ({"pattern": r"^(?=.*\d)(?!.*x).+$"}, "a1", "x1"),
        ({"pattern": r"(?<year>\d)-\k<year>"}, "1-1", "1-2"),
        ({"pattern": r"(?<!a)b"}, "cb", "ab"),
        ({"pattern": "^[^]$"}, "\n", ""),
        ({"pattern": r"^[\d[\]&|-]+$"}, "1[]&|-", "a"),
        ({"pattern": r"^\u0041\x42\u{1F600}\uD83D\uDE00\/\-$"}, "AB😀😀/-", "AB"),
        ({"pattern": "^a.b$"}, "a😀b", "a\u2028b"),
        ({"pattern": "^a{x$"}, "a{x", "ax"),
        ({"pattern": r"^\cJ\0[\b]$"}, "\n\0\b", "n0b"),
        ({"pattern": r"\bfoo\b"}, "éfoo", "afoo"),
        ({"pattern": r"^\s\S$"}, "\u00a0a", "aa"),
        ({"format": "date"}, "2026-02-28", "2026-02-30"),
        ({"format": "date-time"}, "2026-02-28T10:00:00.5Z", "2026-02-28 10:00"),
        ({"format": "time"}, "10:00:00+02:00", "25:00:00Z"),
        ({"format": "duration"}, "P1DT2H", "P"),
        ({"format": "uuid"}, "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "f81d"),
        ({"format": "email"}, "a@b", "a b@c"),
        ({"format": "hostname"}, "a.example", "-a"),
        ({"format": "ipv4"}, "10.0.0.1", "10.0.0.256"),
        ({"format": "ipv6"}, "::1", "::1%a"),
        ({"format": "uri"}, "https://a/b", "a/b"),
        ({"not": {"type": "string"}}, 1, "a"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, 0, 3),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, 5, "ab"),
        ({"multipleOf": 3}, 9, 10),
        ({"uniqueItems": True}, [1, True, "1"], [1, 1.0]),
        ({"uniqueItems": True}, [{"a": 1}, {"a": 2}], [{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]),
        ({"contains": {"const": 1}}, [0, 1], [0]),
        ({"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
        ({"propertyNames": {"pattern": r"^\p{L}+$"}}, {"é": 1}, {"1": 1}),
        ({"patternProperties": {r"^\d": {"type": "string"}}}, {"1": "a", "a": 1}, {"1": 1}),
        (
            {"patternProperties": {r"^\d": {}}, "additionalProperties": False},
            {"1": 1},
            {"a": 1},
        ),
        ({"minProperties": 1}, {"a": 1}, {}),
        ({"unevaluatedProperties": False, "properties": {"a": {}}}, {"a": 1}, {"b": 1}),
        ({"properties": {"pattern": {"type": "string"}}}, {"pattern": "["}, {"pattern": 1}),
        ({"const": {"$ref": "x"}}, {"$ref": "x"}, {"$ref": "y"}),
        ({"prefixItems": [{"type": "string"}], "items": False}, ["a"], ["a", "b"]),
        ({**LIST, "required": ["a"]}, {"a": 1, "next": {"next": {}}}, {"next": {}}),
        ({"$schema": DRAFT_4, "maximum": 3, "exclusiveMaximum": True}, 2, 3),
        ({"$schema": DRAFT_7, "items": [{"pattern": r"^\d$"}]}, ["1"], ["a"]),
        (
            {"definitions": {"a": {"type": "integer"}}, "items": {"$ref": "#/definitions/a"}},
            [1],
            ["a"],
        ),
        ({"$id": "http://a/b", "$defs": {"c": {"$id": "c", "type": "null"}}, "$ref": "c"}, None, 1),
        ({"$defs": {"c": {"$anchor": "c", "type": "null"}}, "$ref": "#c"}, None, 1),
    ],
)
def test_an_answer_must_follow_every_rule(schema: Any, good: Any, bad: Any) -> None:
    assert problem(schema, good) == ""
    if bad is not None:
        assert "JSON Schema: the value at $" in problem(schema, bad)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "an object"),
        ({"type": "text"}, "no valid JSON Schema: the value at $.type"),
        ({"properties": {"a": {"minimum": "1"}}}, "$.properties.a.minimum"),
        ({"pattern": "["}, "without an end"),
        ({"pattern": "(?P<a>b)"}, "a group that is unknown"),
        ({"pattern": "a\\"}, "backslash"),
        ({"pattern": "(a"}, "cannot be read"),
        ({"patternProperties": {"(": {}}}, "cannot be read"),
        ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, "not in this schema"),
        ({"items": {"$ref": "#/$defs/none"}}, "not in this schema"),
        ({"$ref": "#none"}, "not in this schema"),
        ({"$schema": DRAFT_7, "items": [{"$ref": "other.json"}]}, "not in this schema"),
        ({"properties": {"a": {"$schema": DRAFT_7}}}, "another $schema inside"),
        (
            {"unevaluatedProperties": False, "patternProperties": {"a": {}}},
            "both unevaluatedProperties and patternProperties",
        ),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(SchemaRefused) as refused:
        AnswerSchema(json.dumps(schema))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"$ref": "#"}, "{}"),
        ({"pattern": "^(a|aa)+$"}, json.dumps("a" * 300 + "!")),
        (COSTLY, "{}"),
        (LIST, '{"next":' * 900 + "{}" + "}" * 900),
        ({"multipleOf": 0.1}, "1e999"),
    ],
)
def test_an_answer_that_cannot_be_checked_in_time_fails(schema: Any, answer: str) -> None:
    """Each of these would take the library hours, or end in an error of its own."""
    text = AnswerSchema(json.dumps(schema)).problem_of(answer)
    assert text.startswith("cannot be checked against the JSON Schema")


@pytest.mark.parametrize("answer", ["", "no", "{} x", "{'a': 1}", '{"a": NaN}', "```\n{}\n```"])
def test_an_answer_that_is_no_json_fails(answer: str) -> None:
    assert "is no JSON" in AnswerSchema("{}").problem_of(answer)


def test_a_problem_names_the_rule_and_not_what_was_answered() -> None:
    schema = {"properties": {"a": {"enum": ["x"]}}}
    expected = 'does not follow the JSON Schema: the value at $.a breaks the rule "enum": ["x"]'
    assert problem(schema, {"a": "a secret"}) == expected


@given(ANY, ANY)
def test_no_schema_and_no_answer_is_an_error_of_ours(schema: Any, answer: Any) -> None:
    for each in (schema, {"properties": {"a": schema}}):
        with suppress(SchemaRefused):
            assert isinstance(problem(each, answer), str)


@given(st.text(alphabet="ab\\[](){}?*+^$.|-pPdwsk<>=!:u04,&~#\n"), st.text(max_size=5))
def test_every_text_is_a_pattern_or_is_refused(text: str, searched: str) -> None:
    with suppress(PatternRefused):
        assert Pattern(text).occurs_in(searched) in (True, False)


# --- the engine --------------------------------------------------------------------------------


def scripted(text: str = '{"a": 1}', finish: FinishReason = FinishReason.STOP) -> ScriptedEngine:
    """Returns an engine with one answer in two pieces."""
    chunks: list[Step] = [EngineText(text[:3]), EngineText(text[3:]), EngineDone(finish)]
    return ScriptedEngine(scripts=[chunks])


async def answered(engine: Engine, wanted: ResponseFormat | None) -> list[EngineChunk]:
    options = CompletionOptions(response_format=wanted)
    request = EngineRequest([Message(Role.USER, "hi")], options)
    return [chunk async for chunk in ValidatedEngine(engine).generate(request)]


async def test_an_answer_that_follows_its_schema_is_passed_on_unchanged() -> None:
    expected = await answered(scripted(), None)
    assert await answered(scripted(), ResponseFormat('{"required": ["a"]}')) == expected
    assert await answered(scripted(), ResponseFormat(json_object=True)) == expected


@pytest.mark.parametrize(
    "wanted", [ResponseFormat('{"required": ["b"]}'), ResponseFormat('{"type": "string"}')]
)
async def test_an_answer_that_breaks_its_schema_has_no_end(wanted: ResponseFormat) -> None:
    with pytest.raises(SchemaViolated, match="the engine's answer does not follow the JSON Schema"):
        await answered(scripted(), wanted)


async def test_an_answer_that_is_no_object_is_not_what_was_asked_for() -> None:
    with pytest.raises(SchemaViolated, match="object"):
        await answered(scripted("[1, 2]"), ResponseFormat(json_object=True))


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.TOOL_CALLS])
async def test_an_answer_that_was_cut_or_calls_tools_is_what_it_is(finish: FinishReason) -> None:
    chunks = await answered(scripted('{"a": ', finish), ResponseFormat("{}"))
    assert chunks[-1] == EngineDone(finish)


async def test_a_schema_that_cannot_be_checked_never_reaches_the_engine() -> None:
    engine = scripted()
    with pytest.raises(InvalidRequest) as refused:
        await answered(engine, ResponseFormat('{"$ref": "http://x"}'))
    assert refused.value.violations[0].field == "options.response_format.json_schema"
    assert engine.requests == []


def test_every_method_of_an_engine_is_passed_on() -> None:
    contract = {name for name in vars(Engine) if not name.startswith("_")}
    assert contract == {name for name in vars(EngineWrapper) if not name.startswith("_")}
    for name in contract:
        member = inspect.getattr_static(EngineWrapper, name)
        assert isinstance(member, property) == isinstance(vars(Engine)[name], property)
