"""The error table is complete, and says the same as the proto."""

from __future__ import annotations

import math
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.core import errors
from ruvd.core.errors import FieldViolation, InvalidRequest, RuvdError
from ruvd.rpc import status
from ruvd.v1 import session_service_pb2 as pb

LEAVES = [
    leaf
    for leaf in vars(errors).values()
    if isinstance(leaf, type) and issubclass(leaf, RuvdError) and leaf is not RuvdError
]


def test_every_error_has_a_code_and_no_code_is_left_over() -> None:
    assert set(status.CODES) == set(LEAVES)


def test_every_reason_is_in_the_proto_and_no_more() -> None:
    enums = (pb.ErrorReason, admin_pb.ErrorReason)
    names = {name.removeprefix("ERROR_REASON_") for enum in enums for name in enum.keys()}  # noqa: SIM118
    assert names == {leaf.reason() for leaf in LEAVES} | {"UNSPECIFIED", "INTERNAL"}


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf is not InvalidRequest])
def test_an_error_carries_its_reason_and_our_domain(leaf: type[RuvdError]) -> None:
    code, rich = status.to_status(leaf("what happened"))
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.domain, info.reason, rich.message) == ("ruvd", leaf.reason(), "what happened")
    assert rich.code == code.value[0]


def test_an_error_that_is_worth_a_retry_says_when() -> None:
    waits = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    for leaf, code in status.CODES.items():
        if code in waits:
            assert leaf.retry_after_seconds, leaf
    _, rich = status.to_status(errors.Overloaded("full", retry_after_seconds=2.5))
    retry = error_details_pb2.RetryInfo()
    assert rich.details[-1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize(
    ("seconds", "told"), [(-5.0, 0.0), (1e300, 1e9), (math.inf, 1e9), (math.nan, None)]
)
def test_a_delay_always_fits_its_message(seconds: float, told: float | None) -> None:
    _, rich = status.to_status(errors.Overloaded("full", retry_after_seconds=seconds))
    retry = error_details_pb2.RetryInfo()
    if told is None:
        assert not any(detail.Unpack(retry) for detail in rich.details)
    else:
        assert rich.details[-1].Unpack(retry)
        assert retry.retry_delay.ToSeconds() == told


def test_every_wrong_field_is_named() -> None:
    error = InvalidRequest([FieldViolation("a", "is wrong"), FieldViolation("b", "too")])
    _, rich = status.to_status(error)
    bad = error_details_pb2.BadRequest()
    assert rich.details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["a", "b"]


def test_a_status_always_fits_the_metadata_that_a_peer_takes() -> None:
    wrong = [FieldViolation(f"messages[{index}].role", "must be set") for index in range(1000)]
    _, rich = status.to_status(InvalidRequest(wrong))
    bad = error_details_pb2.BadRequest()
    assert rich.details[1].Unpack(bad)
    assert len(rich.SerializeToString()) * 4 / 3 + len(rich.message) < 8192
    assert len(bad.field_violations) > 30
    left_out = 1000 - (len(bad.field_violations) - 1)
    assert bad.field_violations[-1].description == f"{left_out} more are wrong"


@pytest.mark.parametrize("text", ["x" * 100_000, "\N{PILE OF POO}" * 50_000, "ü%\n" * 9_000])
def test_a_status_fits_whatever_is_in_it(text: str) -> None:
    for error in (
        errors.EngineRejected(text),
        InvalidRequest([FieldViolation(text, text), FieldViolation("b", text)]),
    ):
        _, rich = status.to_status(error)
        on_the_wire = len(quote(rich.message)) + len(rich.SerializeToString()) * 4 / 3
        assert on_the_wire < 8000


def test_a_bug_tells_nothing_of_itself() -> None:
    code, rich = status.to_status(KeyError("secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(rich)
