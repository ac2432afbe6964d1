"""Requests at the edges of OpenAI's API: values that are odd, lists that change, what is gone."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
from pathlib import Path
from typing import Any

import httpx
import pytest
from core import Core, settle
from fakes import done
from openai_door import Door, assistant, error, events, user

from ruvd.core.errors import StoreUnavailable
from ruvd.core.model import FinishReason, IdempotencyRecord, ToolCallDelta
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText
from ruvd.http.openai.fields import Fields
from ruvd.http.openai.items import ItemReader
from ruvd.http.openai.options import OptionReader
from ruvd.stores.memory import MemoryStore


async def made(door: Door, **body: Any) -> dict[str, Any]:
    response = await door.post("/responses", **{"model": "m", "input": "q", **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refused(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found = error(response)
    assert param is None or found["param"] == param
    return found


async def upload(door: Door, content: bytes = b"{}") -> str:
    files = {"file": ("a.jsonl", content)}
    response = await door.http.post("/files", files=files, data={"purpose": "batch"})
    found: str = response.json()["id"]
    return found


@pytest.mark.parametrize("after", ["9" * 5000, "-1", "1.0", "٣", str(2**63)])
async def test_a_stream_begins_after_a_number_or_is_refused(after: str) -> None:
    door = Door()
    given = (await made(door))["id"]
    path = f"/responses/{given}"
    refused(
        await door.http.get(path, params={"stream": "true", "starting_after": after}),
        400,
        "starting_after",
    )


@pytest.mark.parametrize(
    ("word", "streams"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)],
)
async def test_a_response_is_streamed_for_every_way_to_write_true(
    word: str, *, streams: bool
) -> None:
    door = Door()
    path = f"/responses/{(await made(door))['id']}"
    answer = await door.http.get(path, params={"stream": word})
    assert answer.headers["content-type"].startswith("text/event-stream") is streams
    refused(await door.http.get(path, params={"stream": "perhaps"}), 400, "stream")


async def test_times_are_whole_seconds() -> None:
    response = await made(Door())
    assert isinstance(response["created_at"], int)


async def test_the_stream_of_a_cancelled_response_tells_the_same_status() -> None:
    door = Door()
    door.answers(EngineText("par"), asyncio.Event())
    given = (await made(door, background=True))["id"]
    await settle()
    assert (await door.http.post(f"/responses/{given}/cancel")).json()["status"] == "cancelled"
    streamed = await door.http.get(f"/responses/{given}?stream=true")
    last = json.loads(events(streamed)[-1])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")


async def test_metadata_that_is_left_out_is_not_taken_for_empty() -> None:
    door = Door()
    created = (await door.post("/conversations", metadata={"a": "b"})).json()
    path = f"/conversations/{created['id']}"
    refused(await door.post(path), 400, "metadata")
    assert (await door.http.get(path)).json()["metadata"] == {"a": "b"}
    assert (await door.post(path, metadata={})).json()["metadata"] == {}


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("after", ["msg_9", "fc_0.0", "msg_system", "rs_1", "nonsense"])
async def test_a_list_of_items_does_not_begin_anew_after_an_unknown_one(
    order: str, after: str
) -> None:
    door = Door()
    items = [user("q"), assistant("a")]
    created = (await door.post("/conversations", items=items)).json()
    path = f"/conversations/{created['id']}/items?order={order}&after={after}"
    assert refused(await door.http.get(path), 404, "after")["code"] == "item_not_found"


async def test_no_items_are_refused_by_their_name() -> None:
    door = Door()
    created = (await door.post("/conversations")).json()
    refused(await door.post(f"/conversations/{created['id']}/items", items=[]), 400, "items")


async def test_files_and_batches_are_listed_in_order_and_page_by_page() -> None:
    door = Door()
    ids = [await upload(door) for _ in range(3)]
    for file_id in ids:
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
        await door.post("/batches", completion_window="24h", **body)
    for path in ("/files", "/batches"):
        newest = [each["id"] for each in (await door.http.get(path)).json()["data"]]
        ascending = (await door.http.get(path, params={"order": "asc"})).json()["data"]
        assert [each["id"] for each in ascending] == newest[::-1]
        page = await door.http.get(path, params={"limit": 1, "after": newest[0]})
        assert (page.json()["last_id"], page.json()["has_more"]) == (newest[1], True)
        refused(await door.http.get(path, params={"order": "up"}), 400, "order")
        refused(await door.http.get(path, params={"after": "none"}), 404, "after")
    await door.http.delete(f"/files/{ids[1]}")
    refused(await door.http.get("/files", params={"after": ids[1]}), 404, "after")


async def test_what_a_path_allows_is_said_for_all_of_its_operations() -> None:
    door = Door()
    for path, allowed in (
        ("/conversations/c", "DELETE, GET, HEAD, POST"),
        ("/files", "GET, HEAD, POST"),
        ("/chat/completions", "POST"),
        ("/responses/compact", "GET, HEAD"),
    ):
        answer = await door.http.put(path)
        assert answer.headers["allow"] == allowed
        assert "PUT" in refused(answer, 405)["message"]


async def test_a_response_says_how_it_is_deleted_and_is_gone_then() -> None:
    door = Door()
    response = await made(door)
    path, conversation = f"/responses/{response['id']}", response["conversation"]["id"]
    answer = await door.http.delete(path)
    message = refused(answer, 405, "response_id")["message"]
    assert f"DELETE /v1/conversations/{conversation}" in message
    assert answer.headers["allow"] == "GET, HEAD"
    refused(await door.http.delete("/responses/resp_none"), 404)
    alone = (await made(door, store=False))["id"]
    assert "forgotten" in refused(await door.http.delete(f"/responses/{alone}"), 405)["message"]
    await door.http.delete(f"/conversations/{conversation}")
    refused(await door.http.get(path), 404)
    refused(await door.http.get(f"{path}?stream=true"), 404)
    refused(await door.http.post(f"{path}/cancel"), 404)
    refused(await door.http.delete(path), 404)
    assert (await door.http.get(f"/responses/{alone}")).status_code == 200


async def test_a_response_is_gone_with_its_conversation_also_if_many_came_after_it() -> None:
    door = Door()
    response = await made(door)
    for _ in range(1001):
        await made(door, store=False)
    await door.http.delete(f"/conversations/{response['conversation']['id']}")
    refused(await door.http.get(f"/responses/{response['id']}"), 404)


async def test_a_body_that_is_compressed_is_refused_as_such() -> None:
    door = Door()
    body = gzip.compress(json.dumps({"model": "m", "messages": [user("q")]}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await door.http.post("/chat/completions", content=body, headers=headers)
    assert "compressed" in refused(answer, 415)["message"]
    headers["content-encoding"] = "identity"
    plain = gzip.decompress(body)
    answer = await door.http.post("/chat/completions", content=plain, headers=headers)
    assert answer.status_code == 200


async def test_numbers_that_are_too_large_are_named_so() -> None:
    door = Door()
    content = b'{"model": "m", "input": "q", "temperature": 1e999}'
    headers = {"content-type": "application/json"}
    answer = await door.http.post("/responses", content=content, headers=headers)
    assert "finite" in refused(answer, 400, "temperature")["message"]


@pytest.mark.parametrize("field", ["conversation", "previous_response_id"])
async def test_an_empty_place_does_not_begin_a_new_conversation(field: str) -> None:
    refused(await Door().post("/responses", model="m", input="q", **{field: ""}), 400, field)


async def test_an_unknown_previous_response_is_a_bad_request_as_at_openai() -> None:
    answer = await Door().post("/responses", model="m", input="q", previous_response_id="resp_x")
    told = refused(answer, 400, "previous_response_id")
    assert (told["type"], told["code"]) == (
        "invalid_request_error", "previous_response_not_found",
    )  # fmt: skip


async def test_the_name_of_a_function_may_come_with_its_result_and_others_may_not() -> None:
    door = Door()
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = [user("q"), {"role": "assistant", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "r"}
    assert (await door.chat(*asked, result)).status_code == 200
    answer = await door.chat({"role": "user", "name": "bob", "content": "q"})
    assert "put" in refused(answer, 400, "messages[0].name")["message"]


async def test_chunks_have_an_empty_usage_before_the_one_that_has_it() -> None:
    door = Door()
    options = {"include_usage": True}
    answer = await door.chat(user("q"), stream=True, stream_options=options)
    chunks = [json.loads(each) for each in events(answer)[:-1]]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    answer = await door.chat(user("q"), stream=True)
    assert not any("usage" in json.loads(each) for each in events(answer)[:-1])


@pytest.mark.parametrize(
    "metadata",
    [{f"k{n}": "v" for n in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}],
)
async def test_metadata_that_stay_in_memory_have_openais_limits(metadata: dict[str, str]) -> None:
    door = Door()
    answer = await door.post("/responses", model="m", input="q", metadata=metadata)
    assert refused(answer, 400)["param"].startswith("metadata")
    body = {"input_file_id": await upload(door), "endpoint": "/v1/chat/completions"}
    answer = await door.post("/batches", completion_window="24h", metadata=metadata, **body)
    assert refused(answer, 400)["param"].startswith("metadata")
    most = {f"k{n}": "v" * 512 for n in range(16)}
    assert (await made(door, metadata=most))["metadata"] == most


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
async def test_json_is_utf_8_and_not_more(encoding: str) -> None:
    content = json.dumps({"model": "m", "messages": [user("é")]}, ensure_ascii=False)
    headers = {"content-type": "application/json"}
    door = Door()
    answer = await door.http.post(
        "/chat/completions", content=content.encode(encoding), headers=headers
    )
    refused(answer, 400, "body")
    for known in ("utf-8", "utf-8-sig"):
        answer = await door.http.post(
            "/chat/completions", content=content.encode(known), headers=headers
        )
        assert answer.status_code == 200


async def test_the_name_of_a_model_is_short() -> None:
    refused(await Door().post("/responses", model="m" * 10_000, input="q"), 400, "model")


async def test_what_an_engine_says_in_turns_is_streamed_once_and_into_the_same_items() -> None:
    door = Door()
    door.answers(
        ToolCallDelta(0, "c0", "look", '{"a"'), EngineText("one "), EngineReasoning("hm "),
        ToolCallDelta(1, "c1", "look", "{}"), ToolCallDelta(0, arguments=": 1}"),
        EngineText("two"), EngineReasoning("so"), EngineDone(FinishReason.TOOL_CALLS, done().usage),
    )  # fmt: skip
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    answer = await door.post("/responses", model="m", input="q", tools=[tool], stream=True)
    told = [json.loads(each) for each in events(answer)]
    grown: dict[str, str] = {}
    for each in told:
        if each["type"].endswith(".delta"):
            grown[each["item_id"]] = grown.get(each["item_id"], "") + each["delta"]
    output = told[-1]["response"]["output"]
    assert grown == {
        item["id"]: item["arguments"] if "arguments" in item else item["content"][0]["text"]
        for item in output
    }
    added = [each for each in told if each["type"] == "response.output_item.added"]
    assert [each["item"]["id"] for each in added] == [item["id"] for item in output]
    assert [each["output_index"] for each in added] == [0, 1, 2, 3]
    kinds = [each["type"] for each in told]
    assert kinds.count("response.output_item.done") == 7  # each at most twice
    last_done = {
        each["output_index"]: each["item"]
        for each in told
        if each["type"] == "response.output_item.done"
    }
    assert [last_done[index] for index in range(4)] == output
    again = await door.http.get(f"/responses/{told[0]['response']['id']}?stream=true")
    assert [
        (each["type"], each["sequence_number"], each.get("delta"))
        for each in map(json.loads, events(again))
    ] == [(each["type"], each["sequence_number"], each.get("delta")) for each in told]


@pytest.mark.parametrize(
    ("said", "kinds"),
    [([], ["message"]), ([EngineReasoning("hm")], ["reasoning", "message"])],
)
async def test_an_answer_that_says_nothing_has_the_items_that_were_added(
    said: list[Any], kinds: list[str]
) -> None:
    door = Door()
    door.answers(*said, done())
    answer = await door.post("/responses", model="m", input="q", stream=True)
    told = [json.loads(each) for each in events(answer)]
    finished = [each["item"] for each in told if each["type"] == "response.output_item.done"]
    assert finished == told[-1]["response"]["output"]
    assert [item["type"] for item in finished] == kinds


class DownStore(MemoryStore):
    """A store that can be taken down."""

    is_down = False

    async def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        if self.is_down:
            raise StoreUnavailable("the disk is gone")
        return await super().completion(completion_id)


async def test_a_response_has_not_failed_because_the_store_is_down() -> None:
    store = DownStore()
    door = Door(Core(store=store))
    path = f"/responses/{(await made(door))['id']}"
    for seconds in (0, 3600):  # its events are still kept, and then they are not
        door.core.clock.advance(seconds)
        await made(door, store=False)  # which forgets old events
        store.is_down = True
        for call in (
            door.http.get(path),
            door.http.get(f"{path}?stream=true"),
            door.http.post(f"{path}/cancel"),
        ):
            refused(await call, 503)
        store.is_down = False
    door.core.clock.advance(-3600)
    assert (await door.http.get(path)).json()["status"] == "completed"


async def test_a_background_response_has_its_session_and_is_refused_without_one() -> None:
    door, go_on = Door(), asyncio.Event()
    door.answers(EngineText("first"), go_on, done())
    answer = await door.post("/responses", model="m", input="q", background=True)
    session_id = answer.json()["conversation"]["id"]
    assert answer.headers["x-ruvd-session-id"] == session_id
    refused(
        await door.post(
            "/responses", model="m", input="q", background=True, conversation="conv_none"
        ),
        404,
    )
    more = await made(door, background=True, conversation=session_id)  # it is not stored yet
    go_on.set()
    await settle()
    found = (await door.http.get(f"/responses/{more['id']}")).json()
    assert (found["status"], found["conversation"]["id"]) == ("completed", session_id)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def test_reasoning_of_many_pieces_takes_the_memory_of_its_text() -> None:
    pieces = [{"type": "reasoning_text", "text": "r" * 40}] * 5000
    before = resident_bytes()
    # With a copy of all before for each piece it were 500 MB, which the message would keep.
    read = ItemReader(Fields()).read([{"type": "reasoning", "content": pieces}], "input")
    assert len(read.messages[0].reasoning) == 200_000
    assert resident_bytes() - before < 100 << 20


def test_too_many_fields_for_the_engine_are_refused_without_a_look_at_each() -> None:
    fields = Fields()
    body: dict[str, Any] = {f"f{n}": {"a": [n]} for n in range(5001)}
    reader = OptionReader(fields, body)
    reader.read_rest()
    assert "5000" in fields.violations[0].description
    assert not reader.options.extra_body.fields


async def test_too_many_items_are_refused_by_their_name() -> None:
    answer = await Door().post("/conversations", items=[user("q")] * 1001)
    assert refused(answer, 400, "items")["message"].startswith("items: ")


@pytest.mark.parametrize(
    ("method", "path", "instead"),
    [
        ("POST", "/v1/v1/chat/completions", "base URL"),
        ("POST", "/chat/completions", "base URL"),
        ("GET", "/models", "base URL"),
        ("POST", "/v1/completions", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions", "/v1/responses"),
        ("GET", "/v1/chat/completions/c/messages", "/v1/responses"),
        ("POST", "/v1/responses/compact", "compaction"),
        ("POST", "/v1/responses/input_tokens", "usage"),
        ("GET", "/v1/responses/resp_x/input_items", "conversation"),
        ("GET", "/v1/conversations", "ListSessions"),
        ("POST", "/v1/threads/t/runs", "/v1/conversations"),
        ("POST", "/v1/embeddings", "only text"),
        ("GET", "/v1/other", "docs/openai-api.md"),
        ("PUT", "/v1/files/f", "docs/openai-api.md"),
    ],
)
async def test_what_is_not_supported_says_what_to_use_instead(
    method: str, path: str, instead: str
) -> None:
    answer = await Door().http.request(method, f"http://localhost{path}")
    assert answer.status_code in (404, 405)
    assert instead in error(answer)["message"].partition(": ")[2]
