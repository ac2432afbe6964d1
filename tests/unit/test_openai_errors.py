"""The error table of OpenAI's API is complete, and the page says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ruvd.core import errors
from ruvd.core.errors import FieldViolation, InvalidRequest, RuvdError
from ruvd.http.openai.errors import STATUSES, respond_to

PAGE = Path(__file__).parents[2] / "docs" / "openai-api.md"
LEAVES = [
    leaf
    for leaf in vars(errors).values()
    if isinstance(leaf, type) and issubclass(leaf, RuvdError) and leaf is not RuvdError
]


def made(leaf: type[RuvdError]) -> RuvdError:
    if leaf is InvalidRequest:
        return InvalidRequest([FieldViolation("a", "is wrong")])
    return leaf("what happened")


def test_every_error_has_a_status_and_none_is_left_over() -> None:
    assert set(STATUSES) == set(LEAVES)


def test_the_page_has_every_reason_with_status_type_code_and_whether_clients_repeat() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    found = {reason: [cell.strip(" `") for cell in rest.split("|")] for reason, rest in rows}
    expected = {}
    for leaf in LEAVES:
        response = respond_to(made(leaf))
        repeats = {"true": "yes", "false": "no"}[response.headers["x-should-retry"]]
        error = response.error
        expected[leaf.reason()] = [str(response.status), error["type"], error["code"], repeats]
    expected["INTERNAL"] = ["500", "server_error", "internal", "no"]
    assert found == expected


@pytest.mark.parametrize("leaf", LEAVES)
def test_an_error_that_is_worth_a_retry_says_when(leaf: type[RuvdError]) -> None:
    headers = respond_to(made(leaf)).headers
    assert ("retry-after" in headers) == (leaf.retry_after_seconds is not None)


def test_a_delay_is_whole_seconds_and_bounded() -> None:
    for seconds, told in ((0.2, "1"), (-1.0, "0"), (1e300, "3600"), (float("inf"), "3600")):
        error = errors.Overloaded("full", retry_after_seconds=seconds)
        assert respond_to(error).headers["retry-after"] == told
    unknown = errors.Overloaded("full", retry_after_seconds=float("nan"))
    assert "retry-after" not in respond_to(unknown).headers


def test_a_bug_tells_nothing_of_itself_and_a_text_is_bounded() -> None:
    assert b"secret" not in respond_to(KeyError("secret")).body
    assert len(respond_to(errors.EngineRejected("x" * 100_000)).body) < 10_000
