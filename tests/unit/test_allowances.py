"""The operator's say: what a tenant may ask for, by rules as the operator writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from core import Core, collect, failed
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from ruvd.config.tenant_limits import limits_by_tenant, one_may_fill
from ruvd.core.completions.allowances import is_allowed
from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.errors import InvalidRequest, PermissionDenied, RuvdError
from ruvd.core.model import Delta, Finished, FinishReason
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineText
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.tenants import scoped
from ruvd.rpc import requests
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

HI = pb.Message(role=pb.ROLE_USER, content="hi")
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}})


@pytest.fixture(autouse=True)
def _called_by_ann() -> Iterator[None]:
    before = caller.current.set(Identity("ann"))
    yield
    caller.current.reset(before)


def limits(*rules: str) -> RequestLimits:
    return RequestLimits(limits_of=limits_by_tenant(rules))


def options(**fields: Any) -> pb.CompletionOptions:
    body = struct_pb2.Struct()
    body.update(fields.pop("extra_body", {}))
    asked = pb.CompletionOptions(**fields)
    if body.fields:
        asked.extra_body.CopyFrom(body)
    return asked


def complete(rule: str, **fields: Any) -> CompletionRequest:
    request = pb.CompleteRequest(messages=[HI], options=options(**fields))
    return requests.complete(request, limits(rule))


def tool(name: str, parameters: str = "") -> pb.Tool:
    return pb.Tool(name=name, parameters=parameters)


@pytest.mark.parametrize(
    ("rule", "asked", "fields"),
    [
        ("ann;models=a|b", {"model": "c"}, ["options.model"]),
        ("ann;models=a", {"model": "A"}, ["options.model"]),
        ("ann;models=a", {"model": "a2"}, ["options.model"]),
        ("ann;models=org/*", {"model": "other/x"}, ["options.model"]),
        ("ann;models=", {"model": "a"}, ["options.model"]),
        ("ann;models=a.c", {"model": "abc"}, ["options.model"]),
        ("**;models=a", {"model": "b"}, ["options.model"]),
        ("ann;extra_body=top_k", {"extra_body": {"min_p": 1}}, ["options.extra_body.min_p"]),
        ("ann;extra_body=", {"extra_body": {"top_k": 1}}, ["options.extra_body.top_k"]),
        ("ann;tools=get_*", {"tools": [tool("get_it"), tool("rm")]}, ["options.tools[1].name"]),
        ("ann;tools=", {"tools": [tool("f")]}, ["options.tools[0].name"]),
        ("ann;models=a", {"extra_body": {"models": ["b"]}}, ["options.extra_body.models"]),
        ("ann;tools=f", {"extra_body": {"plugins": []}}, ["options.extra_body.plugins"]),
        (
            "ann;models=a;tools=;extra_body=",
            {"model": "b", "tools": [tool("f")], "extra_body": {"k": 1}},
            ["options.model", "options.tools[0].name", "options.extra_body.k"],
        ),
    ],
)
def test_what_is_not_listed_is_denied_and_every_field_named(
    rule: str, asked: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(PermissionDenied) as denied:
        complete(rule, **asked)
    assert [each.field for each in denied.value.violations] == fields
    assert all(field in str(denied.value) for field in fields)


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        ("ann;models=a|b", {"model": "b"}),
        ("ann;models=org/*", {"model": "org/x/y"}),
        ("ann;models=*", {"model": "any"}),
        ("bob;models=a", {"model": "b"}),
        ("ann;models=b", {"tools": [tool("f")], "extra_body": {"top_k": 1}}),
        ("ann;extra_body=top_*|min_p", {"extra_body": {"top_k": 1, "min_p": 1}}),
        ("ann;models=a;extra_body=models", {"model": "a", "extra_body": {"models": ["a"]}}),
        ("ann;tools=f", {"tools": [tool("f")]}),
        ("ann;max_output_tokens=10", {"max_tokens": 10}),
        (f"ann;max_schema_bytes={len(SCHEMA)}", {"tools": [tool("f", SCHEMA)]}),
        ("ann;max_schema_bytes=0", {"tools": [tool("f")], "extra_body": {"top_k": 40}}),
    ],
)
def test_what_is_listed_and_within_the_ceilings_comes_through(
    rule: str, asked: dict[str, Any]
) -> None:
    assert complete(rule, **asked).tenant == "ann"


@pytest.mark.parametrize(
    ("rule", "asked", "fields"),
    [
        ("ann;max_output_tokens=10", {"max_tokens": 11}, ["options.max_tokens"]),
        ("ann;max_output_tokens=0", {}, ["options.max_tokens"]),
        (
            "ann;max_schema_bytes=20",
            {"response_format": pb.ResponseFormat(json_schema=SCHEMA)},
            ["options.response_format.json_schema"],
        ),
        ("ann;max_schema_bytes=20", {"tools": [tool("f", SCHEMA)]}, ["options.tools"]),
        (
            f"ann;max_schema_bytes={len(SCHEMA)}",
            {"tools": [tool("f", SCHEMA), tool("g", SCHEMA)]},
            ["options.tools"],
        ),
        (
            "ann;max_schema_bytes=20",
            {"extra_body": {"grammar": "root ::= " + "[a-z] " * 9}},
            ["options.extra_body.grammar"],
        ),
        (
            "ann;max_schema_bytes=20",
            {"extra_body": {"guided_json": json.loads(SCHEMA), "guided_choice": ["a" * 30]}},
            ["options.extra_body.guided_choice", "options.extra_body.guided_json"],
        ),
        (
            "ann;max_output_tokens=10;models=a",
            {"max_tokens": 11, "model": "b", "top_p": 7},
            ["options.top_p", "options.max_tokens"],
        ),
    ],
)
def test_what_is_above_a_ceiling_is_a_wrong_field(
    rule: str, asked: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete(rule, **asked)
    assert sorted(each.field for each in refused.value.violations) == sorted(fields)


async def test_an_item_of_a_batch_that_is_denied_fails_alone() -> None:
    items = [
        pb.CompleteRequest(messages=[HI], options=options(model=model)) for model in ("a", "b")
    ]
    converted = await requests.batch_complete(
        pb.BatchCompleteRequest(items=items), limits("ann;models=a")
    )
    assert isinstance(converted[0], CompletionRequest)
    assert isinstance(converted[1], PermissionDenied)


def test_a_session_cannot_be_created_with_a_model_that_is_not_allowed() -> None:
    def create(model: str) -> NewSession:
        request = pb.CreateSessionRequest(model=model)
        return requests.create_session(request, limits("ann;models=a"), SessionPolicy())

    assert create("a").model == "a"
    assert not create("").model
    with pytest.raises(PermissionDenied) as denied:
        create("b")
    assert [each.field for each in denied.value.violations] == ["model"]


@given(st.text(max_size=20), st.lists(st.text("ab.*[]?+|\\", max_size=5), max_size=3))
def test_a_list_has_a_name_if_a_pattern_has_its_parts_in_order(
    name: str, patterns: list[str]
) -> None:
    def matches(pattern: str) -> bool:
        first, *others = pattern.split("*")
        if not others:
            return name == pattern
        rest = name.removeprefix(first)
        if not name.startswith(first):
            return False
        for part in others[:-1]:
            _, found, rest = rest.partition(part) if part else (rest, " ", rest)
            if not found:
                return False
        return len(rest) >= len(others[-1]) and rest.endswith(others[-1])

    assert is_allowed(name, patterns) == any(map(matches, patterns))
    assert is_allowed(name, ["*"])
    assert is_allowed(name, None)
    assert not is_allowed(name, [])


# --- the turn itself ---------------------------------------------------------------------------


def core(rule: str) -> Core:
    return Core(limits_of=limits_by_tenant([rule]))


async def error_of(core: Core, session_id: str = "", **fields: object) -> RuvdError:
    completion = core.start("hi", session_id, tenant="ann", **fields)
    await failed(completion, RuvdError)
    assert isinstance(completion.error, RuvdError)
    return completion.error


async def test_the_model_of_the_engine_and_of_the_session_must_be_allowed_too() -> None:
    daemon = core("ann;models=allowed")
    error = await error_of(daemon)
    assert isinstance(error, PermissionDenied)
    assert "'scripted'" in str(error)
    session = scoped("ann", "s")
    await daemon.commands.create(NewSession(session, model="older", tenant="ann"))
    assert isinstance(await error_of(daemon, session), PermissionDenied)
    assert not daemon.engine.requests
    await daemon.say("hi", session, tenant="ann", options=CompletionOptions(model="allowed"))
    await daemon.say("hi", "", tenant="bob")
    assert [each.options.model for each in daemon.engine.requests] == ["allowed", ""]


async def test_a_turn_that_is_denied_creates_no_session() -> None:
    daemon = core("ann;models=allowed")
    session = scoped("ann", "s")
    assert isinstance(await error_of(daemon, session), PermissionDenied)
    assert (await daemon.sessions.counts()).sessions == 0


async def test_a_request_without_max_tokens_gets_the_ceiling_and_keeps_its_request_id() -> None:
    daemon = core("ann;max_output_tokens=7")
    session = scoped("ann", "s")
    first = await daemon.say("hi", session, tenant="ann", request_id="r")
    given = CompletionOptions(max_tokens=3)
    await daemon.say("hi", session, tenant="ann", options=given)
    await daemon.say("hi", "", tenant="bob")
    assert [each.options.max_tokens for each in daemon.engine.requests] == [7, 3, None]
    other = Core(store=daemon.store, limits_of=limits_by_tenant(["ann;max_output_tokens=9"]))
    assert await other.say("hi", session, tenant="ann", request_id="r") == first


async def test_an_answer_ends_at_the_tenants_ceiling_of_bytes() -> None:
    daemon = core("ann;max_answer_bytes=10")
    chunks = [EngineText("12345678"), EngineText("9äöü"), EngineText("more")]
    daemon.engine.scripts = [[*chunks], [*chunks]]
    events = await collect(daemon.start("hi", "", tenant="ann"))
    text = "".join(each.event.text for each in events if isinstance(each.event, Delta))
    last = events[-1].event
    assert isinstance(last, Finished)
    assert (text, last.finish_reason) == ("123456789", FinishReason.LENGTH)
    assert last.raw_finish_reason == "max_answer_bytes"


# --- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("", "the pattern of the tenant is missing"),
        (";max_inflight=1", "the pattern of the tenant is missing"),
        ("ann;max_inflight", "must be KEY=VALUE"),
        ("ann;max_inflights=1", "with one of the keys"),
        ("ann;max_inflight=1;max_inflight=2", "each key once"),
        ("ann;max_inflight=-1", "max_inflight must be a whole number, 0 or more"),
        ("ann;tokens_per_minute=1.5", "tokens_per_minute must be a whole number, 0 or more"),
        ("ann;weight=0", "weight must be a number from 0.001 to 1000"),
        ("ann;weight=nan", "weight must be a number from 0.001 to 1000"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(rule: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        limits_by_tenant([rule])
    assert repr(rule) in str(error.value)


def test_the_first_rule_that_matches_has_all_limits_of_a_tenant() -> None:
    of = limits_by_tenant(["a/*;max_inflight=1", "a/**;weight=2;models=", "**;tokens_per_minute=9"])
    assert (of("a/b").max_inflight, of("a/b").weight) == (1, 1.0)
    assert (of("a/b/c").max_inflight, of("a/b/c").weight, of("a/b/c").models) == (None, 2.0, ())
    assert of("default").tokens_per_minute == 9
    assert of("default").models is None


def test_whether_a_single_tenant_may_have_all_sessions_is_seen_in_the_rules() -> None:
    assert one_may_fill([], 10)
    assert one_may_fill(["ann;max_sessions=5"], 10), "of the others one may"
    assert one_may_fill(["*;max_sessions=5"], 10), "a name with a slash matches no rule"
    assert one_may_fill(["ann;weight=2", "**;max_sessions=5"], 10)
    assert one_may_fill(["ann;max_sessions=10", "**;max_sessions=5"], 10)
    assert not one_may_fill(["ann;max_sessions=9", "**;max_sessions=5"], 10)
