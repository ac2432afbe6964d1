"""Any JSON in any field is answered with a status that is not a bug's."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai_door import Door

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["user", "assistant", "tool", "system", "function", "text", "message", "auto", "\ud800",
         "json_schema", "function_call", "function_call_output", "reasoning", "resp_x", "conv_x"]
    )
)  # fmt: skip
NAMES = st.sampled_from(
    ["role", "content", "type", "text", "tool_calls", "tool_call_id", "id", "function", "name",
     "arguments", "parameters", "strict", "call_id", "output", "format", "schema", "json_schema",
     "reasoning_content", "engine_data", "summary", "refusal", "effort", "$ref", "description"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FIELDS = {
    "/chat/completions": (
        "messages", "model", "stream", "stream_options", "n", "stop", "seed", "logit_bias", "tools",
        "tool_choice", "response_format", "max_tokens", "temperature", "top_p", "metadata", "user",
        "store", "parallel_tool_calls", "top_k", "functions",
    ),
    "/responses": (
        "input", "model", "instructions", "conversation", "previous_response_id", "store", "stream",
        "stream_options", "background", "tools", "tool_choice", "text", "reasoning", "metadata",
        "include", "truncation", "max_output_tokens", "temperature", "stop", "other",
    ),
    "/conversations": ("items", "metadata", "other"),
    "/conversations/s": ("metadata", "other"),
    "/conversations/s/items": ("items", "other"),
    "/batches": ("input_file_id", "endpoint", "completion_window", "metadata"),
}  # fmt: skip
BODIES = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda path: st.tuples(
        st.just(path), st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, max_size=6)
    )
)
MESSAGES = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=3)


async def post(path: str, body: dict[str, Any], **headers: str) -> None:
    door = Door()
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    response = await door.http.post(path, content=content, headers=headers)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=50)
@given(BODIES)
async def test_odd_fields_are_refused_or_answered(
    path_and_body: tuple[str, dict[str, Any]],
) -> None:
    path, body = path_and_body
    await post(path, body)


@settings(max_examples=50)
@given(MESSAGES, st.sampled_from([{}, {"x-ruvd-session-id": "s"}]))
async def test_odd_messages_and_items_are_refused_or_answered(
    messages: list[dict[str, Any]], headers: dict[str, str]
) -> None:
    await post("/chat/completions", {"model": "m", "messages": messages}, **headers)
    await post("/responses", {"model": "m", "input": messages})
    await post("/conversations", {"items": messages})
