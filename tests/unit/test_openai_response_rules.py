"""Responses and conversations over HTTP: where they belong, and their events' numbers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from core import settle
from fakes import done
from openai_door import Door, error

from ruvd.core import errors
from ruvd.core.model import FinishReason, Message, Role, ToolCallDelta
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}


async def respond(door: Door, text: Any = "q", **body: Any) -> dict[str, Any]:
    response = await door.post("/responses", model="m", input=text, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


async def stream(door: Door, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = await (door.post(path, **body) if body else door.http.get(path))
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert names == [event["type"] for event in events]
    return events


async def test_a_previous_response_goes_on_in_its_session_and_branches_in_a_fork() -> None:
    door = Door()
    first = await respond(door, "one", instructions="be brief")
    second = await respond(door, "two", previous_response_id=first["id"])
    assert second["conversation"] == first["conversation"]
    assert door.core.prompts()[1] == ["be brief", "one", "answer 1", "two"]
    branch = await respond(door, "other", previous_response_id=first["id"])
    assert branch["conversation"] != first["conversation"]
    assert door.core.prompts()[2] == ["be brief", "one", "answer 1", "other"]
    third = await respond(door, "three", previous_response_id=second["id"])
    assert third["conversation"] == first["conversation"]
    assert third["previous_response_id"] == second["id"]
    gone = await door.post("/responses", model="m", input="q", previous_response_id="resp_x")
    assert (gone.status_code, error(gone)["param"]) == (400, "previous_response_id")


async def test_two_that_go_on_at_once_do_not_see_each_other() -> None:
    door = Door()
    first = await respond(door, "one")
    both = await asyncio.gather(
        *(respond(door, f"{n}", previous_response_id=first["id"]) for n in range(5))
    )
    assert len({each["conversation"]["id"] for each in both}) == 5
    assert all(len(prompt) == 3 for prompt in door.core.prompts()[1:])


async def test_a_request_that_is_repeated_is_answered_once() -> None:
    door = Door()
    key = {"headers": {"idempotency-key": "k"}}
    first = await respond(door, "one", **key)
    assert (await respond(door, "one", **key))["id"] == first["id"]
    more = {"previous_response_id": first["id"], "headers": {"idempotency-key": "l"}}
    second = await respond(door, "two", **more)
    assert (await respond(door, "two", **more))["id"] == second["id"]
    assert len(door.core.engine.requests) == 2


async def test_nothing_is_kept_of_a_response_that_is_not_stored() -> None:
    door = Door()
    made = await respond(door, [{"role": "user", "content": "q"}], store=False)
    assert made["conversation"] is None
    assert (await door.core.sessions.counts()).sessions == 0
    for more in ({"conversation": "c"}, {"previous_response_id": "r"}, {"background": True}):
        refused = await door.post("/responses", model="m", input="q", store=False, **more)
        assert (refused.status_code, error(refused)["param"]) == (400, "store")


async def test_items_of_an_output_are_read_as_one_message() -> None:
    door = Door()
    door.answers(
        EngineReasoning("hm"), EngineText("so"), ToolCallDelta(0, "c1", "look"),
        ToolCallDelta(0, arguments="{}"), ToolCallDelta(1, "c2", "look"),
        EngineDone(FinishReason.TOOL_CALLS, done().usage),
    )  # fmt: skip
    made = await respond(door, "q", tools=[LOOK], store=False)
    kinds = [item["type"] for item in made["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    results = [
        {"type": "function_call_output", "call_id": each, "output": f"found {each}"}
        for each in ("c1", "c2")
    ]
    question = {"role": "user", "content": "q"}
    await respond(door, [question, *made["output"], *results], tools=[LOOK], store=False)
    sent = door.core.engine.requests[1].messages
    assert [message.role for message in sent] == [
        Role.USER, Role.ASSISTANT, Role.TOOL, Role.TOOL,
    ]  # fmt: skip
    assert (sent[1].content, sent[1].reasoning) == ("so", "hm")
    assert [call.id for call in sent[1].tool_calls] == ["c1", "c2"]
    assert sent[3].content == "found c2"


async def test_events_have_growing_numbers_and_go_on_after_any_of_them() -> None:
    door = Door()
    door.answers(
        EngineReasoning("hm"), EngineText("see "), EngineText("this"),
        ToolCallDelta(0, "c1", "look"), ToolCallDelta(0, arguments="{}"),
        EngineDone(FinishReason.TOOL_CALLS, done().usage),
    )  # fmt: skip
    events = await stream(door, "/responses", model="m", input="q", stream=True, tools=[LOOK])
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    kinds = [event["type"].removeprefix("response.") for event in events]
    for kind in ("reasoning_text", "output_text", "function_call_arguments"):
        assert {f"{kind}.delta", f"{kind}.done"} <= set(kinds)
    assert (kinds[:2], kinds[-1]) == (["created", "in_progress"], "completed")
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 3
    done_items = [event["item"] for event in events if event["type"].endswith("item.done")]
    assert done_items == events[-1]["response"]["output"]
    given = events[-1]["response"]["id"]
    for after in (0, numbers[0], numbers[3], numbers[-2], numbers[-1]):
        rest = await stream(door, f"/responses/{given}?stream=true&starting_after={after}")
        left = [each for each in events if each["sequence_number"] > after]
        assert [(each["sequence_number"], each["type"]) for each in rest] == [
            (each["sequence_number"], each["type"]) for each in left
        ]
        assert [each.get("delta") for each in rest] == [each.get("delta") for each in left]
    wrong = await door.http.get(f"/responses/{given}?stream=true&starting_after=-1")
    assert (wrong.status_code, error(wrong)["param"]) == (400, "starting_after")


async def test_after_a_restart_the_end_of_a_stream_is_left() -> None:
    door = Door()
    events = await stream(door, "/responses", model="m", input="q", stream=True)
    given, last = events[-1]["response"]["id"], events[-1]["sequence_number"]
    after = events[-4]["sequence_number"]
    door.core.completions._ended.clear()  # as after a restart: only the store has the answer
    rest = await stream(door, f"/responses/{given}?stream=true&starting_after={after}")
    assert rest[-1]["type"] == "response.completed"
    assert rest[-1]["sequence_number"] >= last
    assert text_of(rest[-1]["response"]) == "answer 1"
    whole = (await door.http.get(f"/responses/{given}")).json()
    assert (whole["status"], text_of(whole)) == ("completed", "answer 1")


async def test_a_background_response_runs_alone_and_can_be_cancelled() -> None:
    door = Door()
    may_end = asyncio.Event()
    door.answers(EngineText("some"), may_end, EngineText(" text"), done())
    queued = await respond(door, "q", background=True)
    path = f"/responses/{queued['id']}"
    await settle()
    assert (await door.http.get(path)).json()["status"] == "in_progress"
    may_end.set()
    await settle()
    ended = (await door.http.get(path)).json()
    assert (ended["status"], text_of(ended)) == ("completed", "some text")
    door.answers(EngineText("some"), asyncio.Event(), done())
    second = await respond(door, "q", background=True)
    await settle()
    cancelled = await door.http.post(f"/responses/{second['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    door.answers(errors.EngineUnavailable("down"))
    failed = await respond(door, "q", background=True)
    await settle()
    found = (await door.http.get(f"/responses/{failed['id']}")).json()
    assert (found["status"], found["error"]["code"]) == ("failed", "engine_unavailable")
    missing = await door.http.post("/responses/resp_none/cancel")
    assert missing.status_code == 404


async def test_a_stream_that_fails_ends_with_its_failure() -> None:
    door = Door()
    door.answers(EngineText("some"), errors.EngineUnavailable("broke off"))
    events = await stream(door, "/responses", model="m", input="q", stream=True)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "engine_unavailable"
    door.answers(errors.ContextTooLong("too long"))
    early = await door.post("/responses", model="m", input="q", stream=True)
    assert (early.status_code, error(early)["code"]) == (400, "context_length_exceeded")


async def test_an_answer_that_is_cut_is_incomplete() -> None:
    door = Door()
    door.answers(EngineText("some"), EngineDone(FinishReason.LENGTH, None))
    made = await respond(door, "q", max_output_tokens=1)
    assert (made["status"], made["incomplete_details"]) == (
        "incomplete", {"reason": "max_output_tokens"},
    )  # fmt: skip
    assert (made["usage"], made["max_output_tokens"]) == (None, 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "input": ({"input": 5}, "input"),
    "no input": ({"input": []}, "input"),
    "item": ({"input": [5]}, "input[0]"),
    "type": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    "role": ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
    "part": (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
    ),
    "output": ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].call_id"),
    "call": ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
    "late system": (
        {"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "input[1].role",
    ),
    "instructions": ({"instructions": 5}, "instructions"),
    "temperature": ({"temperature": 3}, "temperature"),
    "max": ({"max_output_tokens": 0}, "max_output_tokens"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "tool": ({"tools": [{**LOOK, "name": "a b"}]}, "tools[0].name"),
    "choice": ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}},
               "tool_choice.name"),
    "format": ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    "schema": ({"text": {"format": {"type": "json_schema", "name": "n", "schema": 5}}},
               "text.format.schema"),
    "format name": ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
                    "text.format.name"),
    "truncation": ({"truncation": "disabled"}, "truncation"),
    "include": ({"include": ["message.output_text.logprobs"]}, "include"),
    "reasoning": ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    "metadata": ({"metadata": {"a": 5}}, "metadata.a"),
    "conversation": ({"conversation": 5}, "conversation"),
    "conversation id": ({"conversation": "a b"}, "conversation"),
    "both": ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
    "stream": ({"stream": "yes"}, "stream"),
    "prompt": ({"prompt": {"id": "p"}}, "prompt"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_field_of_a_response_is_named(case: str) -> None:
    fields, path = WRONG[case]
    door = Door()
    response = await door.post("/responses", **{"model": "m", "input": "q", **fields})
    assert response.status_code == 400, response.text
    assert error(response)["param"] == path
    assert not door.core.engine.requests


async def test_a_conversation_is_a_session_whose_messages_are_items() -> None:
    door = Door()
    items = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "zero"},
             {"role": "assistant", "content": "shown"}]  # fmt: skip
    made = (await door.post("/conversations", metadata={"a": "b"}, items=items)).json()
    assert made["object"] == "conversation"
    assert (made["metadata"], made["created_at"]) == ({"a": "b"}, 1_000_000)
    path = f"/conversations/{made['id']}"
    await respond(door, "one", conversation=made["id"])
    assert door.core.prompts()[0] == ["be brief", "zero", "shown", "one"]
    session = await door.core.sessions.history(made["id"])
    assert session.messages is not None
    assert session.messages[-1] == Message(Role.ASSISTANT, "answer 1")

    async def listed(query: str) -> tuple[list[str], bool]:
        found = (await door.http.get(f"{path}/items?{query}")).json()
        return [each["id"] for each in found["data"]], found["has_more"]

    everything = ["msg_system", "msg_0", "msg_1", "msg_2", "msg_3"]
    assert await listed("order=asc") == (everything, False)
    assert await listed("") == (everything[::-1], False)
    for order, expected in (("asc", everything), ("desc", everything[::-1])):
        pages, after, more = [], "", True
        while more:
            found, more = await listed(f"order={order}&limit=2{after}")
            pages += found
            after = f"&after={found[-1]}"
        assert pages == expected
    one = (await door.http.get(f"{path}/items/msg_3")).json()
    assert one["content"][0]["text"] == "answer 1"
    added = await door.post(f"{path}/items", items=[{"role": "user", "content": "more"}])
    assert [each["id"] for each in added.json()["data"]] == ["msg_4"]
    changed = await door.post(path, metadata={"c": "d"})
    assert changed.json()["metadata"] == {"c": "d"}
    assert (await door.http.get(path)).json() == changed.json()
    deleted = await door.http.delete(path)
    assert deleted.json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    assert (await door.http.get(path)).status_code == 404
    gone = await door.post("/responses", model="m", input="q", conversation=made["id"])
    assert (gone.status_code, error(gone)["code"]) == (404, "session_not_found")


async def test_what_a_conversation_cannot_do_is_refused() -> None:
    door = Door()
    made = (await door.post("/conversations", items=[{"role": "user", "content": "a"}])).json()
    path = f"/conversations/{made['id']}"
    for call, status, param in (
        (door.http.get(f"{path}/items?limit=0"), 400, "limit"),
        (door.http.get(f"{path}/items?order=up"), 400, "order"),
        (door.http.get(f"{path}/items?after=nonsense"), 404, "after"),
        (door.http.get(f"{path}/items/msg_9"), 404, "item_id"),
        (door.http.delete(f"{path}/items/msg_0"), 405, "item_id"),
        (door.http.delete("/responses/resp_x"), 404, None),
        (door.post("/conversations", items=5), 400, "items"),
        (door.post("/conversations", items=[{"role": "user", "content": ""}]), 400,
         "items[0].content"),
        (door.post("/conversations", metadata={"k": "v" * 300}), 400, "metadata['k']"),
        (door.post("/conversations", other=1), 400, "other"),
        (door.post(f"{path}/items", items=[{"role": "system", "content": "b"}]), 400,
         "items[0].role"),
        (door.post("/conversations/a b", metadata={}), 400, "conversation"),
    ):  # fmt: skip
        response = await call
        assert (response.status_code, error(response)["param"]) == (status, param), response.text
