"""The errors for a server's refusals, and whether they are retried."""

from __future__ import annotations

import email.utils
import time

import msgspec
import pytest

from ruvd.core.errors import (
    ContextTooLong,
    EngineRateLimited,
    EngineRejected,
    EngineUnavailable,
    RuvdError,
)
from ruvd.engines.chat.errors import response_error
from ruvd.engines.chat.retryable import may_go_elsewhere, may_retry

OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please reduce the length of the messages."  # noqa: E501
VLLM = "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the messages, 10000 in the completion). Please reduce the length of the messages or completion."  # noqa: E501
VLLM_NEWER = "This model's maximum context length is 2048 tokens. However, your request has 2500 input tokens. Please reduce the length of the input messages."  # noqa: E501
SGLANG = "Requested token count exceeds the model's maximum context length of 64000 tokens. You requested a total of 71897 tokens: 7897 tokens from the input messages and 64000 tokens for the completion."  # noqa: E501
SGLANG_INPUT = (
    "The input (516368 tokens) is longer than the model's context length (262144 tokens)."
)
OPENROUTER = "This endpoint's maximum context length is 65536 tokens. However, you requested about 90000 tokens."  # noqa: E501


def body(message: str, **fields: object) -> bytes:
    return msgspec.json.encode({"error": {"message": message, **fields}})


@pytest.mark.parametrize(
    ("content", "prompt", "limit"),
    [
        (body(OPENAI, code="context_length_exceeded"), 9000, 8192),
        (body("Too long.", code="context_length_exceeded"), None, None),
        (body(VLLM, type="BadRequestError", code=400), 112946, 16384),
        (msgspec.json.encode({"object": "error", "message": VLLM}), 112946, 16384),
        (body(VLLM_NEWER), 2500, 2048),
        (body(SGLANG), 7897, 64000),
        (body(SGLANG_INPUT), 516368, 262144),
        (body(OPENROUTER), 90000, 65536),
        (body("No.", type="exceed_context_size_error", n_prompt_tokens=9, n_ctx=5), 9, 5),
    ],
)
def test_an_overflow_is_known_in_the_words_of_each_server(
    content: bytes, prompt: int | None, limit: int | None
) -> None:
    error = response_error(400, content)
    assert isinstance(error, ContextTooLong)
    assert (error.prompt_tokens, error.limit_tokens) == (prompt, limit)


@pytest.mark.parametrize(
    ("status", "kind", "again", "elsewhere"),
    [
        (400, EngineRejected, False, False),
        (401, EngineUnavailable, False, True),
        (402, EngineUnavailable, False, True),
        (403, EngineUnavailable, False, True),
        (404, EngineRejected, False, False),
        (408, EngineUnavailable, True, True),
        (409, EngineRejected, False, False),
        (413, EngineRejected, False, False),
        (422, EngineRejected, False, False),
        (425, EngineUnavailable, True, True),
        (429, EngineRateLimited, True, True),
        (500, EngineUnavailable, False, False),
        (502, EngineUnavailable, True, True),
        (503, EngineUnavailable, True, True),
        (504, EngineUnavailable, False, False),
        (302, EngineUnavailable, False, False),
    ],
)
def test_a_status_is_an_error_and_says_whether_to_try_again(
    status: int,
    kind: type[RuvdError],
    again: bool,  # noqa: FBT001
    elsewhere: bool,  # noqa: FBT001
) -> None:
    error = response_error(status, body("Because."))
    assert type(error) is kind
    assert (may_retry(error), may_go_elsewhere(error)) == (again, elsewhere)
    assert str(error).endswith(("Because.", f"HTTP status {status}"))


def test_a_quota_that_is_used_up_is_not_asked_for_again() -> None:
    error = response_error(429, body("You exceeded your quota.", code="insufficient_quota"))
    assert isinstance(error, EngineRateLimited)
    assert not may_retry(error)
    assert may_go_elsewhere(error)


def test_retry_after_is_seconds_or_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    for value, least, most in (("7", 7.0, 7.0), (date, 28.0, 30.0), ("soon", 1.0, 1.0)):
        seconds = response_error(429, b"", retry_after=value).retry_after_seconds
        assert seconds is not None
        assert least <= seconds <= most


def test_a_retry_after_date_counts_from_the_date_of_the_response() -> None:
    """The server's clock and this machine's may differ by any time."""
    now, until = (email.utils.formatdate(seconds, usegmt=True) for seconds in (1e9, 1e9 + 30))
    assert response_error(429, b"", retry_after=until, date=now).retry_after_seconds == 30
    assert response_error(429, b"", retry_after=until, date="soon").retry_after_seconds == 0


@pytest.mark.parametrize(
    ("status", "content", "text"),
    [
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (400, b'{"error":"no such thing"}', "no such thing"),
        (400, b"plainly no", "plainly no"),
        (400, b"<html><h1>Bad</h1></html>", "the engine answered with HTTP status 400"),
        (502, b"<html><h1>Bad Gateway</h1></html>", "the engine answered with HTTP status 502"),
        (400, b"\xff\xfe", "\ufffd\ufffd"),
        (400, b"[1, 2]", "[1, 2]"),
        (400, body("x" * 5000), "x" * 1000 + "…"),
    ],
)
def test_the_message_is_the_servers_unless_it_is_a_page_and_no_longer_than_a_status(
    status: int, content: bytes, text: str
) -> None:
    assert str(response_error(status, content)) == text
