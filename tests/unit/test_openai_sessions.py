"""Chat completions in a session: only the new messages are taken, and the history must agree."""

from __future__ import annotations

import json
from typing import Any

from openai_door import Door, assistant, error, events, user

from ruvd.core.model import FinishReason, ToolCallDelta
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText

S = {"headers": {"x-ruvd-session-id": "s"}}


async def contents(door: Door) -> list[str]:
    return await door.core.history("s")


async def test_only_what_follows_the_last_answer_is_new() -> None:
    door = Door()
    first = await door.chat(user("one"), **S)
    assert first.headers["x-ruvd-session-id"] == "s"
    await door.chat(user("two"), **S)  # without any history
    await door.chat(user("two"), assistant("answer 2"), user("three"), **S)  # with its end
    everything: list[dict[str, Any]] = []
    for question, answer in (("one", 1), ("two", 2), ("three", 3)):
        everything += [user(question), assistant(f"answer {answer}")]
    await door.chat(*everything, user("four"), **S)
    assert await contents(door) == [
        "one", "answer 1", "two", "answer 2", "three", "answer 3", "four", "answer 4",
    ]  # fmt: skip
    assert [len(each) for each in door.core.prompts()] == [1, 3, 5, 7]


async def test_a_history_that_differs_is_refused_and_changes_nothing() -> None:
    door = Door()
    await door.chat(user("one"), **S)
    other = await door.chat(user("one"), assistant("other"), user("two"), **S)
    assert (other.status_code, error(other)["param"]) == (400, "messages[1]")
    longer = [user("zero"), assistant("x"), user("one"), assistant("answer 1"), user("two")]
    assert error(await door.chat(*longer, **S))["param"] == "messages"
    assert await contents(door) == ["one", "answer 1"]


async def test_a_new_session_begins_with_the_history_that_comes_along() -> None:
    door = Door()
    system = {"role": "system", "content": "be brief"}
    await door.chat(system, user("example"), assistant("shown"), user("one"), **S)
    assert await contents(door) == ["example", "shown", "one", "answer 1"]
    again = await door.chat(system, user("one"), assistant("answer 1"), user("two"), **S)
    assert again.status_code == 200
    changed = await door.chat({**system, "content": "be long"}, user("three"), **S)
    assert (changed.status_code, error(changed)["param"]) == (400, "messages[0]")


async def test_a_request_with_the_same_key_is_answered_once() -> None:
    door = Door()
    headers = {"x-ruvd-session-id": "s", "idempotency-key": "k"}
    first = await door.chat(user("one"), headers=headers)
    second = await door.chat(user("one"), headers=headers)
    assert first.json()["choices"] == second.json()["choices"]
    assert first.json()["id"] == second.json()["id"]
    assert await contents(door) == ["one", "answer 1"]
    other = await door.chat(user("two"), headers=headers)
    assert (other.status_code, error(other)["code"]) == (422, "request_id_reused")


async def test_wrong_headers_are_named() -> None:
    door = Door()
    for headers, name in (
        ({"x-ruvd-session-id": "a b"}, "X-Ruvd-Session-Id"),
        ({"x-ruvd-session-id": "s", "x-ruvd-if-busy": "perhaps"}, "X-Ruvd-If-Busy"),
        ({"x-ruvd-on-disconnect": "perhaps"}, "X-Ruvd-On-Disconnect"),
        ({"idempotency-key": "k" * 200}, "Idempotency-Key"),
    ):
        refused = await door.chat(user("q"), headers=headers)
        assert (refused.status_code, error(refused)["param"]) == (400, name)


async def test_a_stream_whose_deltas_are_gone_has_the_whole_answer() -> None:
    door = Door()
    door.answers(
        EngineReasoning("hm"), EngineText("some text"), ToolCallDelta(0, "c1", "look"),
        ToolCallDelta(0, arguments="{}"), EngineDone(FinishReason.TOOL_CALLS),
    )  # fmt: skip
    tool = {"type": "function", "function": {"name": "look"}}
    headers = {"x-ruvd-session-id": "s", "idempotency-key": "k"}
    await door.chat(user("one"), headers=headers, tools=[tool])
    door.core.completions._ended.clear()  # as after a restart: only the store has the answer
    streamed = await door.chat(user("one"), headers=headers, tools=[tool], stream=True)
    *data, last = events(streamed)
    assert last == "[DONE]"
    deltas = [json.loads(each)["choices"][0]["delta"] for each in data]
    assert "".join(each.get("reasoning_content", "") for each in deltas) == "hm"
    assert "".join(each.get("content", "") for each in deltas) == "some text"
    (call,) = [call for each in deltas for call in each.get("tool_calls", ())]
    assert (call["id"], call["function"]) == ("c1", {"arguments": "{}", "name": "look"})
    assert len(door.core.engine.requests) == 1
