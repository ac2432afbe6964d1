"""Schemas and grammars that would take llama.cpp gigabytes or minutes are refused by their field.

Each refused one was tried on the real server, where it took more than 100 MB, or more than 2 s for
one token, or killed the process.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import struct_pb2

from ruvd.core.errors import InvalidRequest
from ruvd.rpc import requests
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

STRING = {"type": "string"}


def wrong(**options: Any) -> dict[str, str]:
    """The wrong fields of a request with these options, and what is wrong."""
    message = pb.Message(role=pb.ROLE_USER, content="hi")
    request = pb.CompleteRequest(messages=[message], options=pb.CompletionOptions(**options))
    try:
        requests.complete(request, RequestLimits())
    except InvalidRequest as error:
        return {each.field.removeprefix("options."): each.description for each in error.violations}
    return {}


def extra(**fields: Any) -> dict[str, Any]:
    body = struct_pb2.Struct()
    body.update(fields)
    return {"extra_body": body}


def object_of(count: int, schema: Any = None) -> dict[str, Any]:
    names = [f"property_{number}" for number in range(count)]
    properties = dict.fromkeys(names, STRING if schema is None else schema)
    return {"type": "object", "properties": properties, "required": names}


def doubling(levels: int) -> dict[str, Any]:
    """Each definition refers to the next one twice."""
    definitions: dict[str, Any] = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)
    }
    definitions[f"d{levels}"] = STRING
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def string(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


LARGE_SCHEMAS = {
    "too broad": object_of(1000),
    "too many lengths": object_of(240, {"type": "string", "maxLength": 1999}),
    "too many items": object_of(30, {"type": "array", "items": STRING, "minItems": 1999}),
    "references that double": doubling(25),
    "a pattern of optional parts": string("^" + "(a|b)?" * 100 + "$"),
    "nested repetitions in a pattern": string("^(((a{0,50}){0,50}){0,50})$"),
    "a long pattern": string("^" + "a" * 5000 + "$"),
    "many patterns": {
        "anyOf": [string("^" + f"{number}" * 50 + "$") for number in range(100, 200)]
    },
    "a long repeated pattern": string("^(" + "a" * 1900 + "){1,1999}$"),
    "a deep pattern": string("^" + "(" * 40 + "a" + ")" * 40 + "$"),
}
LARGE_GRAMMARS = {
    "too long": f'root ::= "{"x" * (1 << 16)}"',
    "many alternatives": "root ::= " + " | ".join(f'"{number}"' for number in range(2000)),
    "optional parts": "root ::= " + '"a"? ' * 100,
    "repeated optional parts": 'root ::= "x" ("a"? "b"?){0,2000}',
    "optional parts over several rules": (
        'root ::= a a a a a a a a\na ::= b b b b b b\nb ::= c c c c c\nc ::= "x"? "y"?'
    ),
    "optional parts across a group": "root ::= " + '("x" ' + '"a"? ' * 40 + ")" + '"a"? ' * 40,
    "nested repetitions": 'root ::= (("a"{1,100}){1,200}){1,200}',
    "a long text that is repeated": f'root ::= "{"a" * 20_000}"{{1,1999}}',
    "rules that double": "root ::= r0\n"
    + "\n".join(f"r{n} ::= r{n + 1} | r{n + 1} r{n + 1}" for n in range(24))
    + '\nr24 ::= "x"?',
    "deep groups": "root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000,
    "groups that are not closed": "root ::= " + "(" * 10_000,
    "a long chain of rules": "\n".join(f"r{n} ::= r{n + 1}" for n in range(2000)),
}
JSON_GRAMMAR = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [1-9] [0-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize("schema", LARGE_SCHEMAS.values(), ids=LARGE_SCHEMAS.keys())
def test_a_schema_that_explodes_is_refused_wherever_it_is_given(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    form = pb.ResponseFormat(json_schema=text)
    assert list(wrong(response_format=form)) == ["response_format.json_schema"]
    tool = pb.Tool(name="f", parameters=text)
    assert list(wrong(tools=[tool])) == ["tools[0].parameters"]
    assert list(wrong(**extra(json_schema=schema))) == ["extra_body.json_schema"]


@pytest.mark.parametrize("grammar", LARGE_GRAMMARS.values(), ids=LARGE_GRAMMARS.keys())
def test_a_grammar_that_explodes_is_refused(grammar: str) -> None:
    assert list(wrong(**extra(grammar=grammar))) == ["extra_body.grammar"]


@pytest.mark.parametrize(
    "schema",
    [
        object_of(300),
        object_of(10, object_of(20)),
        {"type": "array", "items": {"type": "string", "maxLength": 100_000}, "maxItems": 100_000},
        string(r"^\d{3}-\d{3}-\d{4}$"),
        string("^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
        string(r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}( x[0-9]{1,5})?$"),
        doubling(5),
        {"$ref": "#/$defs/node", "$defs": {"node": object_of(2, {"$ref": "#/$defs/node"})}},
        {"properties": {"pattern": STRING, "maxLength": {"type": "integer"}}},
        {"$ref": "#/$defs/missing/0"},
        {"pattern": "((("},
        {"pattern": ")]}?*"},
    ],
)
def test_ordinary_schemas_pass(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert not wrong(response_format=pb.ResponseFormat(json_schema=text))
    assert not wrong(**extra(json_schema=schema))


@pytest.mark.parametrize(
    "grammar",
    [
        JSON_GRAMMAR,
        'root ::= [a-z]{1,2000} "."?',
        'root ::= ("yes" | "no") "."*',
        'root ::= "a long sentence, again and again. "{1,1000}',
        "root ::= <think> !<[1000]>* </think>",
        "no grammar at all ((( ]{{",
        'root ::= "a" root | ""',
        "%llguidance {}\nstart: /(a{1,500}){1,500}/",
        "",
    ],
)
def test_ordinary_grammars_pass(grammar: str) -> None:
    assert not wrong(**extra(grammar=grammar))


def test_the_schemas_of_all_tools_are_bounded_together() -> None:
    def tools(count: int) -> list[pb.Tool]:
        text = json.dumps(object_of(300))
        return [pb.Tool(name=f"f{number}", parameters=text) for number in range(count)]

    assert not wrong(tools=tools(4))
    assert wrong(tools=tools(10)) == {
        "tools": "the schemas have 9040 values together, the limit is 4000"
    }


def test_other_fields_that_take_much_of_the_server_are_bounded() -> None:
    assert list(wrong(**extra(n_probs=49_000))) == ["extra_body.n_probs"]
    breakers = [f"word {number}" for number in range(65)]
    assert list(wrong(**extra(dry_sequence_breakers=breakers))) == [
        "extra_body.dry_sequence_breakers"
    ]
    triggers = [{"type": 2, "value": "(a*)?" * 100}]
    assert list(wrong(**extra(grammar_triggers=triggers))) == ["extra_body.grammar_triggers"]
    assert not wrong(**extra(grammar=1, json_schema="x", grammar_triggers="x"))
