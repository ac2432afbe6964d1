"""Lines of OpenAI's batch format: their conversion, and the refusal of invalid ones by path."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from ruvd_client import (
    FieldViolation,
    Message,
    ResponseFormat,
    Role,
    RuvdError,
    ToolChoiceMode,
)
from ruvd_client.v1.session_service_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_TOOL_CALLS,
    CompleteRequest,
    Completion,
    Finished,
    ToolCall,
    Usage,
)

from ruvd.cli.batch_lines import (
    MAX_LINE_BYTES,
    completed,
    failed,
    read_item,
    read_written,
    to_request,
)
from ruvd.cli.openai_messages import LineRefused
from ruvd.rpc.requests import complete
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

USER = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"ä": {"type": "string"}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
BODY_FIELDS = (
    "model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop",
    "seed", "frequency_penalty", "presence_penalty", "logit_bias", "tools", "tool_choice",
    "parallel_tool_calls", "response_format", "n", "stream", "user",
)  # fmt: skip


def line(custom_id: Any = "q1", **fields: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, **fields}).encode()


def converted(**body: Any) -> CompleteRequest:
    return to_request(read_item(line(body={"messages": [USER], **body}), 1))


def refusal(content: bytes) -> LineRefused:
    with pytest.raises(LineRefused) as refused:
        to_request(read_item(content, 1))
    return refused.value


def test_every_option_of_openai_is_converted() -> None:
    function = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    request = converted(
        model="m",
        temperature=0,
        top_p=0.5,
        max_completion_tokens=7,
        stop="end",
        seed=-3,
        frequency_penalty=1,
        presence_penalty=-1,
        logit_bias={"50256": -100},
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        parallel_tool_calls=False,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": SCHEMA, "strict": False},
        },
        n=1,
        stream=False,
        logprobs=False,
        top_logprobs=None,
        user="ada",
        reasoning_effort="low",
    )
    options = request.options
    text = json.dumps(SCHEMA, ensure_ascii=False)
    assert (options.model, options.temperature, options.top_p) == ("m", 0.0, 0.5)
    assert options.HasField("temperature")
    assert (options.max_tokens, list(options.stop), options.seed) == (7, ["end"], -3)
    assert (options.frequency_penalty, options.presence_penalty) == (1.0, -1.0)
    assert dict(options.logit_bias) == {50256: -100.0}
    assert (options.tools[0].name, options.tools[0].description) == ("f", "d")
    assert (options.tools[0].parameters, options.tools[0].strict) == (text, True)
    assert options.tool_choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
    assert options.HasField("parallel_tool_calls")
    assert (options.response_format.json_schema, options.response_format.name) == (text, "a")
    assert MessageToDict(options.extra_body) == {"user": "ada", "reasoning_effort": "low"}
    assert request.session_id == ""


def test_null_and_missing_options_are_left_to_the_engine() -> None:
    request = converted(
        **{name: None for name in BODY_FIELDS if name != "messages"},
    )
    assert not request.options.ListFields()
    assert not converted(response_format={"type": "text"}).options.ListFields()
    assert list(converted(stop=["a", "b"]).options.stop) == ["a", "b"]


def test_a_field_that_ruvd_does_not_have_may_hold_any_json() -> None:
    fields: dict[str, Any] = {
        "store": True,
        "chat_template_kwargs": {"enable_thinking": False, "depth": {"levels": [1, 2.5, None]}},
        "flags": [True, False, None, "x", {"deep": [True]}],
        "empty": {},
        "none": [],
        "count": 40,
    }
    request = converted(**fields)
    assert MessageToDict(request.options.extra_body) == fields
    received = pb.CompleteRequest.FromString(request.SerializeToString())
    assert complete(received, RequestLimits()).options.extra_body == fields


def test_any_json_object_can_be_asked_for() -> None:
    form = converted(response_format={"type": "json_object"}).options.response_format
    assert form == ResponseFormat(json_object=True)


def test_a_json_object_with_a_schema_is_asked_for_by_the_schema() -> None:
    wanted = {"type": "json_object", "schema": SCHEMA}
    form = converted(response_format=wanted).options.response_format
    assert form == ResponseFormat(json_schema=json.dumps(SCHEMA, ensure_ascii=False))


def test_the_description_of_a_format_is_that_of_its_schema() -> None:
    wanted = {"name": "a", "description": "A city.", "schema": SCHEMA}
    options = converted(response_format={"type": "json_schema", "json_schema": wanted}).options
    schema = json.loads(options.response_format.json_schema)
    assert schema == {**SCHEMA, "description": "A city."}


def test_a_tool_can_be_named() -> None:
    request = converted(
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
    )
    assert request.options.tool_choice.function == "f"


def test_the_conversation_keeps_its_roles_calls_and_results() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "2"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    assert list(converted(messages=messages).messages) == [
        Message(role=Role.ROLE_SYSTEM, content="Be kind."),
        Message(role=Role.ROLE_USER, content="one 2"),
        Message(role=Role.ROLE_ASSISTANT, tool_calls=[ToolCall(id="1", name="f", arguments="{}")]),
        Message(role=Role.ROLE_TOOL, tool_call_id="1", content="x"),
    ]


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"{", ""),
        (b"\xff", ""),
        (b"[1]", ""),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"', ""),
        (line(None), "custom_id"),
        (line(""), "custom_id"),
        (line(7), "custom_id"),
        (line(method="GET"), "method"),
        (line(url="/v1/embeddings"), "url"),
        (line(), "body"),
        (line(body=[]), "body"),
        (line(body={"messages": [USER]}, more=1), "more"),
        (line(body={}), "body.messages"),
        (line(body={"messages": []}), "body.messages"),
        (line(body={"messages": ["x"]}), "body.messages[0]"),
        (line(body={"messages": [USER, {"role": "x"}]}), "body.messages[1].role"),
        (line(body={"messages": [{**USER, "content": 1}]}), "body.messages[0].content"),
        (line(body={"messages": [{**USER, "name": "Ada"}]}), "body.messages[0].name"),
    ],
)
def test_a_wrong_line_is_refused_by_its_path(content: bytes, path: str) -> None:
    assert refusal(content).path == path


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": "\ud800"}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more"),
        ({"response_format": {"type": "json_object", "schema": []}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"stream": True}, "stream"),
        ({"logprobs": True}, "logprobs"),
        ({"user": "\udfff"}, "user"),
        ({"user": 10**400}, "user"),
        ({"user": 2**53 + 1}, "user"),
        ({"deep": json.loads("[" * 40 + "]" * 40)}, "deep"),
    ],
)
def test_a_wrong_option_is_refused_by_its_path(body: dict[str, Any], path: str) -> None:
    assert refusal(line(body={"messages": [USER], **body})).path == f"body.{path}"


@given(st.dictionaries(st.sampled_from(BODY_FIELDS), JSON), JSON, JSON)
def test_every_line_becomes_a_request_or_a_refusal(
    body: dict[str, Any], message: Any, custom_id: Any
) -> None:
    for each in ({"messages": [USER], **body}, {"messages": [USER, message]}, message):
        item = read_item(line(custom_id, body=each), 3)
        try:
            request = to_request(item)
        except LineRefused as refused:
            outcome = failed(item.id, item.custom_id, item.number, refused)
            assert json.loads(outcome)["custom_id"] == item.custom_id
            assert not {"Cc", "Zl", "Zp"} & {unicodedata.category(each) for each in outcome}
            outcome.encode()
        else:
            assert request.request_id == item.id
            assert CompleteRequest.FromString(request.SerializeToString()) == request


@given(st.binary())
def test_bytes_that_are_not_a_line_are_refused(content: bytes) -> None:
    item = read_item(content, 1)
    if item.custom_id is None:
        with pytest.raises(LineRefused):
            to_request(item)


def test_an_item_has_the_same_id_in_every_run_and_another_has_not() -> None:
    one = line(body={"messages": [USER], "seed": 1})
    assert read_item(one, 1).id == read_item(one, 9).id
    assert read_item(one, 1).id == read_item(line(body={"seed": 1, "messages": [USER]}), 1).id
    others = [
        line("q2", body={"messages": [USER], "seed": 1}),
        line(body={"messages": [USER], "seed": 2}),
        b"{",
        b"}",
    ]
    assert len({read_item(each, 1).id for each in [one, *others]}) == 5
    assert read_item(b"{", 1).id != read_item(b"{", 2).id


# --- output --------------------------------------------------------------------------------


def test_an_answer_is_a_chat_completion() -> None:
    message = Message(
        role=Role.ROLE_ASSISTANT,
        reasoning="hm",
        tool_calls=[ToolCall(id="1", name="f", arguments="{}")],
    )
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=0)
    finished = Finished(finish_reason=FINISH_REASON_TOOL_CALLS, message=message, usage=usage)
    completion = Completion(completion_id="c", model="m", finished=finished)
    value = json.loads(completed("batch_req_1", "q1", completion, 7))
    assert value == {
        "id": "batch_req_1",
        "custom_id": "q1",
        "response": {
            "status_code": 200,
            "request_id": "batch_req_1",
            "body": {
                "id": "c",
                "object": "chat.completion",
                "created": 7,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {
                            "role": "assistant",
                            "content": None,
                            "reasoning_content": "hm",
                            "tool_calls": [
                                {
                                    "id": "1",
                                    "type": "function",
                                    "function": {"name": "f", "arguments": "{}"},
                                }
                            ],
                            "refusal": None,
                        },
                        "logprobs": None,
                        "finish_reason": "tool_calls",
                    }
                ],
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 2,
                    "total_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 0},
                },
            },
        },
        "error": None,
    }


def test_values_that_the_engine_does_not_report_are_left_out() -> None:
    finished = Finished(finish_reason=FINISH_REASON_LENGTH, message=Message(content="a\u2028b"))
    text = completed("batch_req_1", "q1", Completion(finished=finished), 7)
    assert "\\u2028" in text
    body = json.loads(text)["response"]["body"]
    assert "usage" not in body
    assert body["choices"][0]["finish_reason"] == "length"
    assert "tool_calls" not in body["choices"][0]["message"]
    finished.usage.prompt_tokens = 1
    body = json.loads(completed("x", "q", Completion(finished=finished), 7))["response"]["body"]
    assert "prompt_tokens_details" not in body["usage"]


@pytest.mark.parametrize(
    ("code", "reason", "status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", 400, "invalid_request_error"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 429, "invalid_request_error"),
        (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE", 503, "server_error"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "ENGINE_TIMEOUT", 504, "server_error"),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 500, "server_error"),
        (grpc.StatusCode.UNKNOWN, "", 500, "server_error"),
    ],
)
def test_a_failure_has_its_http_status_and_our_reason(
    code: grpc.StatusCode, reason: str, status: int, kind: str
) -> None:
    violations = (FieldViolation("options.extra_body.n", "no"), FieldViolation("x", "y"))
    text = failed("batch_req_1", "q1", 3, RuvdError(code, reason, "why", violations))
    response = json.loads(text)["response"]
    assert response["status_code"] == status
    assert response["body"]["error"] == {
        "message": "line 3: why",
        "type": kind,
        "param": "body.n",
        "code": reason or "UNKNOWN",
    }


def test_a_written_line_identifies_its_item() -> None:
    done = read_written(completed("batch_req_1", "q1", Completion(), 7).encode())
    assert done is not None
    assert (done.id, done.key, done.succeeded) == ("batch_req_1", "q1", True)
    wrong = read_written(failed("batch_req_2", None, 1, LineRefused("body", "no")).encode())
    assert wrong is not None
    assert (wrong.key, wrong.succeeded) == ("batch_req_2", False)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"id": "x', line(body={}), b'{"id": 1, "custom_id": "a"}']
)
def test_a_line_of_another_program_is_not_accepted(content: bytes) -> None:
    assert read_written(content) is None
