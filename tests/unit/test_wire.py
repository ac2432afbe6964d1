"""Request bytes are bounded before they are parsed, and what is no request is refused as such."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvd.core.errors import InvalidRequest
from ruvd.rpc import wire
from ruvd.rpc.requests import complete
from ruvd.rpc.validation import RequestLimits
from ruvd.v1 import session_service_pb2 as pb

MEGABYTES = 4 << 20
EMPTY_MESSAGE = b"\x12\x00"


def bomb(field: bytes, count: int = 1_900_000) -> bytes:
    return field * count


def nested_values(count: int) -> bytes:
    """An `extra_body` with a list of this many values."""
    request = pb.CompleteRequest()
    request.options.extra_body["x"] = [None] * count
    return request.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        bomb(EMPTY_MESSAGE),
        bomb(b"\xf8\x07\x01", 1_000_000),  # a field that the proto does not have
        pb.BatchCompleteRequest(items=[pb.CompleteRequest()] * 200_000).SerializeToString(),
        nested_values(200_000),
    ],
    ids=["messages", "unknown fields", "items", "nested values"],
)
def test_more_elements_than_a_request_may_have_are_refused_before_they_are_parsed(
    data: bytes,
) -> None:
    kind = pb.BatchCompleteRequest if data.startswith(b"\x0a") else pb.CompleteRequest
    with pytest.raises(InvalidRequest, match="more than 100000") as caught:
        wire.parse(kind, data, MEGABYTES)
    assert [violation.field for violation in caught.value.violations] == ["request"]


def test_a_request_above_the_size_limit_is_refused() -> None:
    request = pb.CompleteRequest(system_prompt="x" * 2000)
    data = request.SerializeToString()
    assert wire.parse(pb.CompleteRequest, data, len(data)) == request
    with pytest.raises(InvalidRequest, match="max_request_bytes"):
        wire.parse(pb.CompleteRequest, data, len(data) - 1)


@settings(max_examples=300)
@given(data=st.binary(max_size=100), padding=st.sampled_from([0, wire.LARGE_BYTES]))
def test_bytes_are_a_request_or_refused_as_none(data: bytes, padding: int) -> None:
    field = pb.CompleteRequest(system_prompt="x" * padding).SerializeToString()
    try:
        expected = pb.CompleteRequest.FromString(field + data)
    except DecodeError:
        with pytest.raises(InvalidRequest):
            wire.parse(pb.CompleteRequest, field + data, MEGABYTES)
    else:
        assert wire.parse(pb.CompleteRequest, field + data, MEGABYTES) == expected


def test_at_most_a_hundred_violations_are_reported_and_the_others_are_counted() -> None:
    request = pb.CompleteRequest(messages=[pb.Message()] * 90_000)
    with pytest.raises(InvalidRequest) as caught:
        complete(request, RequestLimits(max_messages=1000))
    violations = caught.value.violations
    assert len(violations) == 101
    assert violations[0].description == "has more than 1000 messages (max_messages)"
    assert violations[-1].field == "request"
    assert int(violations[-1].description.split()[0]) < 2000
