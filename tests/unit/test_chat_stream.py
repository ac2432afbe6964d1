"""The decoding of a chat completion's chunks, in each form in which real servers send them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.errors import ContextTooLong, EngineRejected, EngineUnavailable, RuvdError
from ruvd.core.model import FinishReason, ToolCall, ToolCallDelta, Usage
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText
from ruvd.engines.chat.body import BodyDecoder
from ruvd.engines.chat.chunks import ChunkError
from ruvd.engines.chat.stream import AnswerDecoder


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": fields.pop("finish_reason", None)}
    return msgspec.json.encode({"choices": [choice], **fields})


def fragment(**fields: Any) -> dict[str, Any]:
    """A fragment of a tool call. `name` and `arguments` go into its function."""
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    return {**fields, "function": function}


def calls(*fragments: dict[str, Any], finish: str = "stop") -> tuple[list[ToolCall], EngineDone]:
    """Feeds each fragment as a chunk of its own, and returns the whole calls and the last chunk."""
    answer = AnswerDecoder()
    found: dict[int, list[ToolCallDelta]] = {}
    for each in fragments:
        for delta in answer.feed(chunk({"tool_calls": [each]})):
            assert isinstance(delta, ToolCallDelta)
            found.setdefault(delta.index, []).append(delta)
    answer.feed(chunk({}, finish_reason=finish))
    assert list(found) == list(range(len(found)))
    for first, *rest in found.values():
        assert first.id
        assert first.name
        assert not any(delta.id or delta.name for delta in rest)
    whole = [
        ToolCall(d[0].id, d[0].name, "".join(each.arguments for each in d)) for d in found.values()
    ]
    return whole, answer.done()


TWO = [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", "{}")]


@pytest.mark.parametrize(
    "fragments",
    [
        pytest.param(
            [
                fragment(index=0, id="a", name="f", arguments=""),
                fragment(index=0, arguments='{"x"'),
                fragment(index=0, arguments=":1}"),
                fragment(index=1, id="b", name="g", arguments="{}"),
            ],
            id="OpenAI",
        ),
        pytest.param(
            [
                fragment(index=1, id="a", name="f"),
                fragment(index=3, id="b", name="g"),
                fragment(index=3, id=None, name=None, arguments="{}"),
                fragment(index=1, id=None, name=None, arguments='{"x":1}'),
            ],
            id="mixed, and not from 0",
        ),
        pytest.param(
            [
                fragment(index=0, id="a", name="f", arguments='{"x":'),
                fragment(index=0, id="a", name="f", arguments="1}"),
                fragment(index=1, id="b", name="g", arguments=""),
                fragment(index=1, id="b", name="g", arguments="{}"),
            ],
            id="id and name in each",
        ),
        pytest.param(
            [
                fragment(index=0, id="a", name="f"),
                fragment(index=0, id="other-1", arguments='{"x":'),
                fragment(index=0, id="other-2", name=None, arguments="1}"),
                fragment(index=1, id="b", name="g", arguments="{}"),
            ],
            id="a new id in each, as older vLLM",
        ),
        pytest.param(
            [
                fragment(index=0, id="a", name="f", arguments='{"x":1}'),
                fragment(index=0, id="b", name="g", arguments="{}"),
            ],
            id="one index for all, as Gemini",
        ),
        pytest.param(
            [
                fragment(id="a", name="f", arguments={"x": 1}),
                fragment(id="b", name="g", arguments={}),
            ],
            id="no index, and objects",
        ),
        pytest.param(
            [
                fragment(index=0, id="a", arguments='{"x"'),
                fragment(index=0, name="f", arguments=":1}"),
                fragment(index=1, id="b", name="g", arguments="{}"),
            ],
            id="the name comes late",
        ),
        pytest.param(
            [
                fragment(id="a", name="f", arguments='{"x"'),
                fragment(arguments=":1}"),
                fragment(id="b", name="g", arguments="{}"),
            ],
            id="no index",
        ),
    ],
)
def test_tool_calls_are_numbered_from_0_however_they_come(fragments: list[dict[str, Any]]) -> None:
    whole, done = calls(*fragments)
    if whole[1].arguments == "":
        whole[1] = ToolCall("b", "g", "{}")
    assert whole == TWO
    assert done.finish_reason is FinishReason.TOOL_CALLS


def test_a_call_without_an_id_gets_one() -> None:
    (first, second), _ = calls(
        fragment(name="f", arguments="{}"), fragment(name="g", arguments="{}")
    )
    assert first.id.startswith("call_")
    assert len(first.id) > 20
    assert first.id != second.id


def test_a_call_that_never_gets_a_name_is_no_answer() -> None:
    with pytest.raises(EngineUnavailable, match="no name"):
        calls(fragment(index=0, id="a", arguments="{}"))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("model_length", FinishReason.LENGTH),
        ("eos", FinishReason.STOP),
    ],
)
def test_a_finish_reason_is_one_of_ours(said: str, meant: FinishReason) -> None:
    answer = AnswerDecoder()
    assert answer.feed(chunk({"content": "hi"}, finish_reason="")) == [EngineText("hi")]
    assert not answer.finished
    assert answer.feed(chunk(None, finish_reason=said)) == []
    assert answer.done() == EngineDone(meant, raw_finish_reason=said)


def test_a_call_that_was_cut_by_the_length_has_ended_by_the_length() -> None:
    _, done = calls(fragment(id="a", name="f", arguments='{"x'), finish="length")
    assert done.finish_reason is FinishReason.LENGTH


def test_an_answer_that_the_server_has_cut_is_an_error() -> None:
    for reason, error in (("content_filter", EngineRejected), ("abort", EngineUnavailable)):
        answer = AnswerDecoder()
        answer.feed(chunk({"content": "hi"}, finish_reason=reason))
        with pytest.raises(error):
            answer.done()
    with pytest.raises(EngineUnavailable, match="before its end"):
        AnswerDecoder().done()


def test_reasoning_is_kept_apart_under_either_name() -> None:
    answer = AnswerDecoder()
    both = {"reasoning_content": "hm", "content": "yes"}
    assert answer.feed(chunk(both)) == [EngineReasoning("hm"), EngineText("yes")]
    assert answer.feed(chunk({"reasoning": "hm", "content": None})) == [EngineReasoning("hm")]


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 0}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 5}, "cached_tokens": 3}, 5),
        ({"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, 4),
        ({"cached_tokens": 3}, 3),
        ({"prompt_tokens_details": None}, None),
        ({"prompt_tokens_details": {}}, None),
        ({}, None),
    ],
)
def test_cached_tokens_are_unset_where_the_server_does_not_say(
    fields: dict[str, Any], cached: int | None
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, **fields}
    answer = AnswerDecoder()
    answer.feed(chunk({}, finish_reason="stop", usage=usage))
    assert answer.done().usage == Usage(9, cached, 2)


@pytest.mark.parametrize("place", ["before", "with", "after"])
def test_usage_counts_wherever_it_comes(place: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    alone = msgspec.json.encode({"choices": [], "usage": usage})
    end = chunk({}, finish_reason="stop", usage=usage if place == "with" else None)
    answer = AnswerDecoder()
    for data in {"before": [alone, end], "with": [end], "after": [end, alone]}[place]:
        answer.feed(data)
    assert answer.done().usage == Usage(9, None, 2)


def test_no_usage_is_none() -> None:
    answer = AnswerDecoder()
    answer.feed(chunk({}, finish_reason="stop", usage={}))
    assert answer.done().usage is None


def test_an_overflow_inside_a_stream_counts_only_before_its_first_chunk() -> None:
    error = msgspec.json.encode({"error": {"message": "x", "code": "context_length_exceeded"}})
    with pytest.raises(ContextTooLong):
        AnswerDecoder().feed(error)
    answer = AnswerDecoder()
    answer.feed(chunk({"content": "hi"}))
    with pytest.raises(EngineUnavailable):
        answer.feed(error)


def test_the_error_of_one_event_of_many_is_that_events() -> None:
    for wrong, error in (
        (b'{"error":{"message":"no more room"}}', EngineUnavailable),
        (b'{"choices":', ChunkError),
    ):
        answer = AnswerDecoder()
        events = [chunk({"content": "a"}), wrong, chunk({"content": "b"})]
        assert answer.feed_all(events) == [EngineText("a")]
        with pytest.raises(error):
            answer.check()
    with pytest.raises(ChunkError):  # joined, these two events would be JSON
        AnswerDecoder().feed_all([b'{"error":"a', b'b"}'])


_SOME_CHUNKS = st.one_of(
    st.text(max_size=3).map(lambda text: chunk({"content": text})),
    st.text(max_size=3).map(lambda text: chunk({"reasoning_content": text, "content": text})),
    st.just(chunk({"role": "assistant", "content": ""})),
    st.just(chunk({"tool_calls": [fragment(index=0, id="a", name="f", arguments="{}")]})),
    st.just(chunk({"content": "x"}, usage={"prompt_tokens": 3}, timings={"cache_n": 2})),
    st.just(chunk({"content": "end"}, finish_reason="stop")),
    st.just(b'{"choices":[]}'),
)


@given(events=st.lists(_SOME_CHUNKS, max_size=8), cuts=st.lists(st.integers(0, 8), max_size=3))
def test_the_answer_is_the_same_however_its_events_come_together(
    events: list[bytes], cuts: list[int]
) -> None:
    def decoded(parts: list[list[bytes]]) -> tuple[list[object], bool]:
        decoder = BodyDecoder()
        chunks = [c for part in parts for c in decoder.feed(b"".join(map(sse, part)))]
        merged: list[object] = []
        for chunk in chunks:
            last = merged[-1] if merged else None
            if isinstance(chunk, ToolCallDelta) and chunk.id.startswith("call_"):
                merged.append(replace(chunk, id="made"))  # at random
            elif isinstance(chunk, EngineText) and isinstance(last, EngineText):
                merged[-1] = EngineText(last.text + chunk.text)
            else:
                merged.append(chunk)
        return merged, decoder.answer.finished

    places = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    together = [events[a:b] for a, b in pairwise(places)]
    assert decoded(together) == decoded([[event] for event in events])


def sse(event: bytes) -> bytes:
    return b"data: " + event + b"\n\n"


_NAMES = st.sampled_from(
    [
        "choices", "delta", "message", "content", "text", "finish_reason", "usage", "error", "code",
        "prompt_tokens", "tool_calls", "function", "name", "arguments", "index", "metadata", "raw",
    ]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from(["stop", "\ud83d", "[DONE]", "rate_limit", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(
    events=st.lists(_JSON | st.builds(lambda c: {"choices": [{"delta": c, "message": c}]}, _JSON)),
    is_named=st.booleans(),
)
def test_no_event_raises_anything_but_our_errors(events: list[Any], *, is_named: bool) -> None:
    name = "event: error\n" if is_named else ""
    body = "".join(f"{name}data: {json.dumps(event)}\n\n" for event in events).encode()
    decoder = BodyDecoder()
    try:
        chunks = [*decoder.feed(body), *decoder.end(), *decoder.answer.rest()]
        decoder.answer.check()
        chunks.append(decoder.done())
    except (RuvdError, ChunkError) as error:
        str(error).encode()
    else:
        assert all("\ud83d" not in repr(chunk) for chunk in chunks)
