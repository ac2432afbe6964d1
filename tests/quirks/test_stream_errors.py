"""Errors that a server reports with status 200 are those of the status that it means."""

from __future__ import annotations

import json
from typing import Any

from answers import CUT
from quirk import Quirk, check, delta, end, line, reply, say, stream, table, used

from ruvd.core.errors import (
    ContextTooLong,
    EngineRateLimited,
    EngineRejected,
    EngineUnavailable,
)

ONCE = {"retries": 0}
TOO_LONG = "This model's maximum context length is 100 tokens. However, you requested 120 tokens."


def failing(**fields: Any) -> list[Any]:
    """A stream with an error, and nothing before it."""
    return list(stream({"error": fields}))


def behind(raw: Any, **fields: Any) -> list[Any]:
    """An error as OpenRouter reports that of a provider."""
    metadata = {"raw": raw, "provider_name": "Someone"}
    return list(
        stream({"error": {"message": "Provider returned error", "metadata": metadata, **fields}})
    )


@table(
    # Retried, as nothing has come yet.
    Quirk("OpenRouter: code 429", failing(code=429, message="slow down"), retried=True),
    Quirk("OpenRouter: code 502", failing(code=502, message="provider is down"), retried=True),
    Quirk("OpenRouter: code as text", failing(code="503", message="no"), retried=True),
    Quirk("SGLang: code 503 at the top level", stream({"object": "error", "message": "no", "code": 503}), retried=True),
    Quirk("Anthropic: overloaded_error", stream({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), retried=True),
    Quirk("OpenAI: rate_limit_exceeded", failing(type="requests", code="rate_limit_exceeded", message="x"), retried=True),
    Quirk("Gemini: RESOURCE_EXHAUSTED", failing(status="RESOURCE_EXHAUSTED", message="x"), retried=True),
    Quirk("Gemini: UNAVAILABLE", stream(line(json.dumps([{"error": {"code": 503, "status": "UNAVAILABLE", "message": "x"}}]))), retried=True),
    Quirk("a gateway: status_code beside a text", stream({"error": "later", "status_code": 503}), retried=True),
    Quirk("a gateway: a text with the standard's words", stream({"error": "429 Too Many Requests"}), retried=True),
    Quirk("LiteLLM: the status in the words", stream({"error": {"message": "litellm.APIError: Error code: 503 - busy", "type": None, "code": None}}), retried=True),
    Quirk("DashScope: Throttling", stream({"code": "Throttling.RateQuota", "message": "x", "request_id": "r"}), retried=True),
    Quirk("a gateway: code 529", failing(code=529, message="overloaded"), retried=True),
    Quirk("OpenRouter: the status of the raw error", behind({"error": {"code": 503, "message": "full"}}), retried=True),
    Quirk("a gateway: event error", stream(b'event: error\ndata: {"code":503,"message":"x"}\n\n'), retried=True),
    Quirk("a gateway: the error inside the choice", stream({"choices": [{"delta": {}, "error": {"code": 502, "message": "x"}, "finish_reason": "error"}]}), retried=True),
    Quirk("a gateway: role first, then the error", stream(delta(role="assistant", content=""), {"error": {"code": 502, "message": "x"}}), retried=True),
    Quirk("a gateway: the error as JSON and status 200", reply({"error": {"code": 429, "message": "slow down"}}), retried=True),
    # Not retried.
    Quirk("OpenAI: a quota that is used up", failing(code="insufficient_quota", message="pay"), error=EngineRateLimited, words="pay"),
    Quirk("a gateway: code 401", failing(code=401, message="no such key"), error=EngineUnavailable, words=("credentials", "no such key")),
    Quirk("OpenAI: invalid_api_key", failing(code="invalid_api_key", message="wrong key"), error=EngineUnavailable, words=("credentials", "wrong key")),
    Quirk("DeepSeek: Insufficient Balance", failing(code="402", message="Insufficient Balance"), error=EngineUnavailable, words=("credentials", "Insufficient Balance")),
    Quirk("vLLM: BadRequestError", failing(type="BadRequestError", code=400, message="bad guided_json"), error=EngineRejected, words="bad guided_json"),
    Quirk("OpenAI: invalid_request_error", failing(type="invalid_request_error", code=None, message="bad stop"), error=EngineRejected, words="bad stop"),
    Quirk("a gateway: model_not_found", failing(code="model_not_found", message="no m"), error=EngineRejected, words="no m"),
    Quirk("vLLM: code 500", failing(type="InternalServerError", code=500, message="CUDA error"), error=EngineUnavailable, words="CUDA error"),
    Quirk("a gateway: code 504", failing(code=504, message="slow"), error=EngineUnavailable, words="slow"),
    Quirk("a gateway: an error without words", failing(code=500), error=EngineUnavailable, words="error 500"),
    Quirk("a gateway: an error with nothing", stream({"error": {"param": None}}), error=EngineUnavailable, words="an error and no reason"),
    Quirk("a gateway: the words in detail", stream({"detail": "engine is dead"}), error=EngineUnavailable, words="engine is dead"),
    Quirk("FastAPI: detail is a list", stream({"detail": [{"loc": ["body"], "msg": "field required"}]}), error=EngineUnavailable, words="field required"),
    Quirk("a gateway: the words in msg", failing(msg="it broke"), error=EngineUnavailable, words="it broke"),
    Quirk("a gateway: the error inside an error", failing(error={"message": "deep down"}), error=EngineUnavailable, words="deep down"),
    Quirk("a gateway: JSON inside the text", stream({"error": json.dumps({"error": {"message": "boxed", "code": 400}})}), error=EngineRejected, words="boxed"),
    Quirk("a gateway: event error with plain words", stream(b"event: error\ndata: it broke\n\n"), error=EngineUnavailable, words="it broke"),
    Quirk("a gateway: an array of errors", stream({"errors": [{"message": "one"}, {"message": "two"}]}), error=EngineUnavailable, words=("one", "two")),
    Quirk("MiniMax: base_resp", stream({"base_resp": {"status_code": 1013, "status_msg": "it broke"}}), error=EngineUnavailable, words="it broke"),
    Quirk("Baidu: error_code and error_msg", stream({"error_code": 336000, "error_msg": "it broke"}), error=EngineUnavailable, words="it broke"),
    Quirk("OpenRouter: the words of the raw error", behind('{"error":{"message":"bad top_k"}}', code=400), error=EngineRejected, words=("Provider returned error", "bad top_k")),
    Quirk("OpenRouter: the raw error as text", behind("upstream is out of memory", code=500), error=EngineUnavailable, words="upstream is out of memory"),
    Quirk("OpenRouter: an overflow in the raw error", behind(json.dumps({"error": {"message": TOO_LONG}}), code=400), error=ContextTooLong, words="maximum context length"),
    Quirk("OpenAI: an overflow by its code", failing(code="context_length_exceeded", message="x"), error=ContextTooLong, words="x"),
    Quirk("vLLM: an overflow by its words", failing(code=400, message=TOO_LONG), error=ContextTooLong, words="100"),
    Quirk("a gateway: only a message", stream({"message": TOO_LONG}, done=False), error=ContextTooLong, words="100"),
    # After the first text nothing is retried.
    Quirk("OpenRouter: code 502 after text", stream(say("Hi"), {"error": {"code": 502, "message": "gone"}}), error=EngineUnavailable, words="gone"),
    Quirk("OpenRouter: code 429 after text", stream(say("Hi"), {"error": {"code": 429, "message": "slow"}}), error=EngineRateLimited, words="slow"),
    Quirk("a gateway: an overflow after text", stream(say("Hi"), {"error": {"code": 400, "message": TOO_LONG}}), error=EngineUnavailable, words="maximum context length"),
    Quirk("a gateway: an error after reasoning", stream(delta(reasoning="hm"), {"error": {"code": 503, "message": "gone"}}), error=EngineUnavailable, words="gone"),
    Quirk("a gateway: an error after the finish reason", stream(say("Hi", "stop"), {"error": {"code": 500, "message": "gone"}}), error=EngineUnavailable, words="gone"),
    Quirk("a gateway: text and error in one event", stream({**say("Hi"), "error": {"code": 500, "message": "gone"}}), error=EngineUnavailable, words="gone"),
    # No errors.
    Quirk("a gateway: error is null", stream({**say("Hi", "stop"), "error": None}), text="Hi"),
    Quirk("a gateway: error is empty", stream({**say("Hi", "stop"), "error": ""}, {"error": {}}), text="Hi"),
    Quirk("a gateway: error is false", stream({**say("Hi", "stop"), "error": False}), text="Hi"),
    Quirk("a gateway: code is 0", stream({"code": 0, "message": "success"}, say("Hi", "stop")), text="Hi"),
    Quirk("a gateway: code is 200", stream({"code": 200, "msg": "ok"}, say("Hi", "stop")), text="Hi"),
    Quirk("a gateway: a status of progress", stream({"status": "loading", "message": "Loading"}, say("Hi", "stop")), text="Hi"),
)  # fmt: skip
async def test_an_error_in_a_stream_is_that_of_the_status_it_means(quirk: Quirk) -> None:
    await check(quirk)


def moved(status: str, location: str) -> Any:
    return reply(b"", f"{status} Moved", Location=location)


@table(
    Quirk("a proxy: 307 to another path", moved("307", "/v2/chat/completions"), retried=True, sends=lambda server: server.requests[1].path == "/v2/chat/completions"),
    Quirk("a proxy: 308 with a query", moved("308", "/v1/chat/completions?a=b"), retried=True, sends=lambda server: server.requests[1].raw == server.requests[0].raw),
    Quirk("a proxy: 307 to a relative path", moved("307", "../x/chat/completions"), retried=True, sends=lambda server: server.requests[1].path == "/v1/x/chat/completions"),
    Quirk("a proxy: 307 to another server", moved("307", "http://localhost:1/v1/chat/completions"), error=EngineUnavailable, words=("another server", "localhost")),
    Quirk("a proxy: 308 to another host", moved("308", "//example.org/v1/chat/completions"), error=EngineUnavailable, words=("another server", "example.org")),
    Quirk("a proxy: 307 to https", moved("307", "https://127.0.0.1/v1/chat/completions"), error=EngineUnavailable, words="another server"),
    Quirk("a proxy: 302", moved("302", "/login"), error=EngineUnavailable, words=("302", "/login")),
    Quirk("a proxy: 307 without a place", reply(b"", "307 Moved"), error=EngineUnavailable, words="does not say where"),
)  # fmt: skip
async def test_a_redirect_is_followed_only_to_the_same_server(quirk: Quirk) -> None:
    await check(quirk)


@table(
    Quirk("comments and blank lines", stream(b":\n\n\n\n: x\n\n", say("foo", "stop")), text="foo"),
    Quirk("an event without data", stream(b"event: ping\n\n", say("foo", "stop")), text="foo"),
    Quirk("a name and then data", stream(b"event: completion\n" + line(json.dumps(say("foo", "stop")))), text="foo"),
    Quirk("several names and data", stream(b"event: ping\n\n", b"event: completion\n" + line(json.dumps(say("foo", "stop")))), text="foo"),
    Quirk("data over lines with an empty one", stream(b'event: ping\ndata: {\ndata: "choices":\ndata:\ndata:\ndata: [{"delta":{"content":"foo"},"finish_reason":"stop"}]}\n\n'), text="foo"),
    Quirk("escaped line ends in the text", stream(b'data: {"choices":[{"delta":{"content":"my long\\n\\ncontent"},"finish_reason":"stop"}]}\n\n'), text="my long\n\ncontent"),
    Quirk("special line separators", stream(say("\u2028 and \u2029\x0b\x0c\x85", "stop")), text="\u2028 and \u2029\x0b\x0c\x85"),
    Quirk("a character in two writes", stream('data: {"choices":[{"delta":{"content":"известн'.encode()[:-1], 'data: {"choices":[{"delta":{"content":"известн'.encode()[-1:] + b'"},"finish_reason":"stop"}]}\n\n'), text="известн"),
    Quirk("[DONE] alone after a name", stream(say("foo", "stop"), b"event: done\ndata: [DONE]\n\n", done=False), text="foo"),
    Quirk("an error event", stream(b'event: error\ndata: {"error":{"message":"boom","code":400}}\n\n'), error=EngineRejected, words="boom"),
    Quirk("a stream that breaks off", stream(say("foo"), CUT, done=False, whole=False), error=EngineUnavailable, words="before the answer's end"),
    Quirk("usage in the last chunk", stream(say("foo"), end(), used(1, 2)), text="foo", usage=(1, None, 2)),
)  # fmt: skip
async def test_the_kinds_of_the_official_clients_own_stream_tests(quirk: Quirk) -> None:
    """The kinds of openai-python's tests/test_streaming.py, written anew as answers."""
    await check(quirk)
