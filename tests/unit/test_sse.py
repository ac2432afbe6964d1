"""The decoder of server-sent events, wherever the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvd.engines.chat.sse import EventTooLarge, SseDecoder


@given(
    st.lists(st.binary().map(lambda data: data.translate(None, b"\r\n")), max_size=5),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.integers(min_value=0, max_value=200)),
)
def test_events_are_the_same_at_any_cut(data: list[bytes], end: bytes, cuts: list[int]) -> None:
    stream = b"".join(b"data: " + datum + end + end for datum in data)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder = SseDecoder()
    events: list[bytes] = []
    for first, last in pairwise(places):
        events += decoder.feed(stream[first:last])
    assert events == data


def test_comments_and_other_fields_are_skipped_and_lines_of_data_are_joined() -> None:
    stream = b": ping\n\nevent: x\nid: 7\ndata:one\ndata: two\n\n\n"
    assert SseDecoder().feed(stream) == [b"one\ntwo"]


def test_an_event_without_an_end_is_refused_at_the_bound() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    decoder.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLarge):
        decoder.feed(b"x" * 10)
    with pytest.raises(EventTooLarge):
        SseDecoder(max_event_bytes=100).feed(b"data: 1\n" * 50)
