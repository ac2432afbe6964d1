"""The forms in which servers send what is all there: none of them may lose or fail an answer."""

from __future__ import annotations

import gzip
import json
import zlib

from answers import CUT, STALL, Answer
from quirk import Quirk, check, delta, end, line, reply, say, stream, table, used

from ruvd.core.errors import EngineUnavailable

HI = json.dumps(say("Hi", "stop")).encode()
GZIP = {"Content-Encoding": "gzip"}
EVENTS = b"".join(line(json.dumps(part)) for part in (say("Hi"), end())) + line("[DONE]")


def sse(*parts: bytes, kind: str = "text/event-stream", **headers: str) -> Answer:
    """A stream of these bytes, without [DONE]."""
    return stream(*parts, done=False, headers={"Content-Type": kind, **headers})


def counted(prompt: object, completion: object = 3, **fields: object) -> Answer:
    return stream(say("Hi", "stop"), used(prompt, completion, **fields))


@table(
    Quirk("SGLang: empty data as keep-alive", stream(b"data:\n\n", say("Hi", "stop")), text="Hi"),
    Quirk("a proxy: blank data", stream(b"data:   \n\n", say("Hi"), b"data: \n\n", end()), text="Hi"),
    Quirk("a proxy: comments between", stream(b":\n\n: ping\n\n:x\n", say("Hi", "stop")), text="Hi"),
    Quirk("a proxy: null, lists and texts", stream(line("null"), line("[]"), line('"x"'), say("Hi", "stop")), text="Hi"),
    Quirk("a proxy: empty objects", stream({}, say("Hi"), {}, end()), text="Hi"),
    Quirk("a proxy: a word as keep-alive", stream(line("ping"), say("Hi", "stop")), text="Hi"),
    Quirk("a proxy: an event named ping", stream(b"event: ping\ndata: {}\n\n", say("Hi", "stop")), text="Hi"),
    Quirk("Anthropic: pings with a type", stream({"type": "ping"}, say("Hi", "stop")), text="Hi"),
    Quirk("a proxy: progress", stream({"message": "queued"}, say("Hi", "stop")), text="Hi"),
    Quirk("a server: names of events", sse(b"event: chunk\ndata: " + HI + b"\n\n"), text="Hi"),
    Quirk("a server: ids and retries", sse(b"id: 1\nretry: 5\ndata: " + HI + b"\n\n"), text="Hi"),
    Quirk("[DONE] with spaces", stream(say("Hi", "stop"), b"data:  [DONE] \n\n", STALL, done=False), text="Hi"),
    Quirk("[DONE] without a space", stream(say("Hi", "stop"), b"data:[DONE]\n\n", STALL, done=False), text="Hi"),
    Quirk("[DONE] in quotes", stream(say("Hi", "stop"), b'data: "[DONE]"\n\n', STALL, done=False), text="Hi"),
    Quirk("[done] in small letters", stream(say("Hi", "stop"), b"data: [done]\n\n", STALL, done=False), text="Hi"),
    Quirk("[DONE] without a blank line", stream(say("Hi", "stop"), b"data: [DONE]\n", STALL, done=False), text="Hi"),
    Quirk("[DONE] without a line end", stream(say("Hi", "stop"), b"data: [DONE]", STALL, done=False), text="Hi"),
    Quirk("text after [DONE]", stream(say("Hi", "stop"), line("[DONE]"), say("more")), text="Hi"),
    Quirk("a last event without its blank line", sse(b"data: " + HI + b"\n"), text="Hi"),
    Quirk("a last event without any line end", sse(b"data: " + HI), text="Hi"),
    Quirk("a last event without a blank line before a close", stream(b"data: " + HI, done=False, framing="close"), text="Hi"),
    Quirk("no blank lines at all", sse(b"data: " + json.dumps(say("Hi")).encode() + b"\ndata: " + json.dumps(end()).encode() + b"\ndata: [DONE]\n"), text="Hi"),
    Quirk("CRLF", sse(EVENTS.replace(b"\n", b"\r\n")), text="Hi"),
    Quirk("CR alone", sse(EVENTS.replace(b"\n", b"\r")), text="Hi"),
    Quirk("CRLF, each byte a write", sse(*(bytes([byte]) for byte in EVENTS.replace(b"\n", b"\r\n"))), text="Hi"),
    Quirk("CR, each byte a write", sse(*(bytes([byte]) for byte in EVENTS.replace(b"\n", b"\r"))), text="Hi"),
    Quirk("a byte order mark", sse(b"\xef\xbb\xbf" + EVENTS), text="Hi"),
    Quirk("a byte order mark in pieces", sse(b"\xef", b"\xbb", b"\xbf", EVENTS), text="Hi"),
    Quirk("JSON over several lines of data", sse(b"".join(b"data: %s\n" % part for part in json.dumps(say("Hi", "stop"), indent=1).encode().split(b"\n")) + b"\n"), text="Hi"),
    Quirk("unknown fields of any type", stream(say("Hi", "stop", x=[1, {"y": None}], provider=7, created="now", id=5)), text="Hi"),
    Quirk("known fields of other types", stream({"choices": [{"index": "0", "delta": {"role": 1, "content": "Hi", "tool_calls": {}, "refusal": False}, "finish_reason": "stop", "logprobs": 3}], "usage": "none", "timings": []}), text="Hi"),
    Quirk("NaN in a statistic", sse(b'data: {"choices":[{"delta":{"content":"Hi"},"logprobs":{"v":NaN,"w":-Infinity},"finish_reason":"stop"}]}\n\n'), text="Hi"),
    Quirk("a control character in the text", sse(b'data: {"choices":[{"delta":{"content":"a\tb"},"finish_reason":"stop"}]}\n\n'), text="a\tb"),
    Quirk("several chunks in a list", sse(line(json.dumps([say("Hi"), end()]))), text="Hi"),
    Quirk("JSON that is cut", sse(b'data: {"choices":[{"delta":{"content":"Hi'), error=EngineUnavailable, words="makes no sense"),
    Quirk("JSON that is none", stream(say("Hi"), line("{oops}"), end()), error=EngineUnavailable, words="oops"),
    Quirk("words and no answer", sse(line("upstream connect error")), error=EngineUnavailable, words="upstream connect error"),
    Quirk("very deep JSON", sse(line(b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}")), error=EngineUnavailable, words="makes no sense"),
)  # fmt: skip
async def test_an_event_is_read_in_every_form(quirk: Quirk) -> None:
    await check(quirk)


@table(
    Quirk("counts as floats", counted(9.0, 3.0), text="Hi", usage=(9, None, 3)),
    Quirk("counts as texts", counted("9", "3"), text="Hi", usage=(9, None, 3)),
    Quirk("negative counts", counted(-1), text="Hi", usage=None),
    Quirk("null counts", counted(None, None), text="Hi", usage=None),
    Quirk("a null count of the answer", counted(9, None), text="Hi", usage=(9, None, 0)),
    Quirk("counts beyond 2^63", counted(2**63, 2**63), text="Hi", usage=None),
    Quirk("a count of the answer beyond 2^63", counted(9, 2**70), text="Hi", usage=(9, None, 0)),
    Quirk("a count of 400 digits", counted(int("9" * 400)), text="Hi", usage=None),
    Quirk("counts as objects and lists", counted({}, []), text="Hi", usage=None),
    Quirk("counts as truth values", counted(True, False), text="Hi", usage=None),  # noqa: FBT003
    Quirk("more cached than there are", counted(9, 3, prompt_tokens_details={"cached_tokens": 50}), text="Hi", usage=(9, None, 3)),
    Quirk("cached as text", counted(9, 3, prompt_tokens_details={"cached_tokens": "5"}), text="Hi", usage=(9, 5, 3)),
    Quirk("details as a list", counted(9, 3, prompt_tokens_details=[5]), text="Hi", usage=(9, None, 3)),
    Quirk("llama-server: nonsense in the timings", stream(say("Hi", "stop"), {**used(), "timings": {"prompt_ms": -5, "cache_n": 1e300}}), text="Hi", usage=(9, None, 3)),
    Quirk("usage as a list", stream(say("Hi", "stop", usage=[1])), text="Hi", usage=None),
    Quirk("Infinity", sse(line(HI), line('{"choices":[],"usage":{"prompt_tokens":Infinity}}')), text="Hi", usage=None),
)  # fmt: skip
async def test_no_answer_fails_for_a_statistic(quirk: Quirk) -> None:
    await check(quirk)


def thought(text: str) -> dict[str, object]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


@table(
    Quirk("Mistral: a list of texts", stream(say([{"type": "text", "text": "Hi"}]), say([{"type": "text", "text": " you"}], "stop")), text="Hi you"),
    Quirk("Magistral: thinking and text", stream(say([thought("hm")]), say([thought("!"), {"type": "text", "text": "Hi"}]), end()), text="Hi", reasoning="hm!"),
    Quirk("Magistral: thinking, then plain text", stream(say([thought("hm")]), say("Hi"), end()), text="Hi", reasoning="hm"),
    Quirk("Anthropic: thinking as a text", stream(say([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hi"}], "stop")), text="Hi", reasoning="hm"),
    Quirk("a list of plain texts", stream(say(["Hi", " you"], "stop")), text="Hi you"),
    Quirk("one part without a list", stream(say({"type": "text", "text": "Hi"}, "stop")), text="Hi"),
    Quirk("OpenAI: parts of a response", stream(say([{"type": "output_text", "text": "Hi", "annotations": []}], "stop")), text="Hi"),
    Quirk("a part that is a refusal", stream(say([{"type": "refusal", "refusal": "No."}], "stop")), text="No."),
    Quirk("parts without text", stream(say([{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "Hi"}, None, 5], "stop")), text="Hi"),
    Quirk("an empty list", stream(say([]), say("Hi", "stop")), text="Hi"),
    Quirk("reasoning as an object", stream(delta(reasoning={"text": "hm"}), say("Hi", "stop")), text="Hi", reasoning="hm"),
    Quirk("bytes that are no UTF-8", sse(b'data: {"choices":[{"delta":{"content":"a\xffb"},"finish_reason":"stop"}]}\n\n'), text="a\ufffdb"),
    Quirk("a character that is cut inside an event", sse(b'data: {"choices":[{"delta":{"content":"a\xe2\x82"},"finish_reason":"stop"}]}\n\n'), text="a\ufffd"),
    Quirk("a surrogate pair in two events", sse(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', b'data: {"choices":[{"delta":{"content":"\\ude00b"},"finish_reason":"stop"}]}\n\n'), text="a\U0001f600b"),
    Quirk("half a surrogate pair", sse(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'), text="a\ufffdb"),
    Quirk("half a surrogate pair at the end", sse(b'data: {"choices":[{"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}\n\n'), text="a\ufffd"),
)  # fmt: skip
async def test_content_is_read_in_every_form(quirk: Quirk) -> None:
    await check(quirk)


def compressed(body: bytes, coding: str) -> Answer:
    return sse(body, **{"Content-Encoding": coding})


def flushed(*parts: bytes) -> Answer:
    """A stream whose parts are compressed and flushed one by one, as nginx does it."""
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    return sse(*pieces, packer.flush(), **GZIP)


RAW = zlib.compressobj(wbits=-15)


@table(
    Quirk("nginx: gzip under a stream", compressed(gzip.compress(EVENTS), "gzip"), text="Hi"),
    Quirk("nginx: gzip that is flushed", flushed(line(json.dumps(say("Hi"))), line(json.dumps(end()))), text="Hi"),
    Quirk("gzip, each byte a write", sse(*(bytes([byte]) for byte in gzip.compress(EVENTS)), **GZIP), text="Hi"),
    Quirk("x-gzip", compressed(gzip.compress(EVENTS), "x-gzip"), text="Hi"),
    Quirk("gzip in two members", compressed(gzip.compress(EVENTS[:50]) + gzip.compress(EVENTS[50:]), "GZIP"), text="Hi"),
    Quirk("deflate", compressed(zlib.compress(EVENTS), "deflate"), text="Hi"),
    Quirk("deflate without a header", compressed(RAW.compress(EVENTS) + RAW.flush(), "deflate"), text="Hi"),
    Quirk("identity", compressed(EVENTS, "identity"), text="Hi"),
    Quirk("gzip that is cut", compressed(gzip.compress(b"data: " + HI + b"\n\n")[:-12], "gzip"), error=EngineUnavailable, words="gzip"),
    Quirk("gzip that is none", compressed(EVENTS, "gzip"), error=EngineUnavailable, words="gzip"),
    Quirk("a coding that nobody asked for", compressed(EVENTS, "zstd"), error=EngineUnavailable, words="zstd"),
    Quirk("an error in gzip", reply(gzip.compress(b'{"error":{"message":"boom"}}'), "500 Oops", **GZIP), error=EngineUnavailable, words="boom"),
    Quirk("JSON in gzip", reply(gzip.compress(HI), **GZIP), text="Hi"),
    Quirk("events as JSON", sse(EVENTS, kind="application/json"), text="Hi"),
    Quirk("events as text", sse(EVENTS, kind="text/plain; charset=utf-8"), text="Hi"),
    Quirk("events as bytes", sse(EVENTS, kind="application/octet-stream"), text="Hi"),
    Quirk("events without a type", sse(EVENTS, kind=""), text="Hi"),
    Quirk("events as HTML", sse(EVENTS, kind="text/html"), text="Hi"),
    Quirk("JSON as events", sse(json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()), text="Hi"),
    Quirk("JSON as text", reply({"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}]}, kind="text/plain"), text="Hi", finish="LENGTH"),
    Quirk("JSON over lines", reply(json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}, indent=2).encode()), text="Hi"),
    Quirk("JSON without a finish reason", reply({"choices": [{"message": {"content": "Hi"}}]}), text="Hi"),
    Quirk("JSON that is cut", [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n", HI, CUT], error=EngineUnavailable, words="before the answer's end"),
    Quirk("JSON without an answer", reply({"id": 5, "choices": []}), error=EngineUnavailable, words=("application/json", '\\"id\\"')),
    Quirk("JSON a line", reply(b"\n".join(json.dumps(part).encode() for part in (say("Hi"), say(" you"), end())), kind="application/x-ndjson"), text="Hi you"),
    Quirk("JSON as a list", reply([say("Hi"), end()]), text="Hi"),
    Quirk("a page with status 200", reply(b"<!doctype html><title>Sign in</title>", kind="text/html"), error=EngineUnavailable, words=("text/html", "Sign in")),
    Quirk("a text with status 200", reply(b"it works!", kind="text/plain"), error=EngineUnavailable, words=("text/plain", "it works!")),
    Quirk("nothing with status 200", reply(b""), error=EngineUnavailable, words="ended before its end"),
    Quirk("status 201", stream(say("Hi", "stop"), status="201 Created"), text="Hi"),
)  # fmt: skip
async def test_a_body_is_read_in_every_form(quirk: Quirk) -> None:
    await check(quirk)
