"""Files and batches over HTTP: bounded, each line by itself, and seen by their tenant only."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from core import settle
from fakes import done
from openai_door import Door, error, user

from ruvd.core import errors
from ruvd.core.ports.engine import EngineText
from ruvd.http.openai import files
from ruvd.http.openai.files import FileStore
from ruvd.http.refusals import Refused

URL = "/v1/chat/completions"


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    made = {"model": "m", "messages": [user(custom_id)], **body}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": made}


async def upload(door: Door, *lines: Any, purpose: str = "batch") -> httpx.Response:
    content = b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )
    form = {"file": ("in.jsonl", content)}
    return await door.http.post("/files", files=form, data={"purpose": purpose})


async def begin(door: Door, *lines: Any) -> dict[str, Any]:
    uploaded = await upload(door, *lines)
    assert uploaded.status_code == 200, uploaded.text
    response = await door.post(
        "/batches", input_file_id=uploaded.json()["id"], endpoint=URL, completion_window="24h",
        metadata={"a": "b"},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


async def ended(door: Door, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            await settle()
            batch: dict[str, Any] = (await door.http.get(f"/batches/{batch_id}")).json()
            if batch["status"] in ("completed", "failed", "cancelled"):
                return batch


async def outcomes(door: Door, file_id: str) -> dict[str, Any]:
    content = (await door.http.get(f"/files/{file_id}/content")).text
    lines = [json.loads(each) for each in content.splitlines()]
    return {each["custom_id"]: each["response"] for each in lines}


async def test_each_line_has_an_outcome_of_its_own() -> None:
    door = Door()
    made = await begin(door, line("a"), line("b", temperature=9), line("c", n=2), line("d"))
    assert (made["status"], made["metadata"]) == ("validating", {"a": "b"})
    batch = await ended(door, made["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    answers = await outcomes(door, batch["output_file_id"])
    assert set(answers) == {"a", "d"}
    assert answers["a"]["status_code"] == 200
    assert answers["a"]["body"]["choices"][0]["message"]["content"].startswith("answer")
    failed = await outcomes(door, batch["error_file_id"])
    assert failed["b"]["body"]["error"]["param"] == "temperature"
    assert (failed["c"]["status_code"], failed["c"]["body"]["error"]["param"]) == (400, "n")
    listed = (await door.http.get("/batches")).json()
    assert [each["id"] for each in listed["data"]] == [batch["id"]]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"nonsense"], "invalid_line"),
        ([line("a"), line("a")], "invalid_line"),
        ([{**line("a"), "method": "GET"}], "invalid_line"),
        ([{**line("a"), "url": "/v1/embeddings"}], "invalid_line"),
        ([{**line("a"), "custom_id": 5}], "invalid_line"),
        ([{**line("a"), "body": []}], "invalid_line"),
        ([b"[" * 100_000], "invalid_line"),
        ([b""], "empty_file"),
    ],
)
async def test_a_file_with_a_line_that_is_no_request_fails(lines: list[Any], code: str) -> None:
    door = Door()
    batch = await ended(door, (await begin(door, *lines))["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", code)
    assert not door.core.engine.requests


async def test_a_batch_can_be_cancelled_and_keeps_what_it_has() -> None:
    door = Door()
    door.answers(EngineText("first"), done())
    door.answers(asyncio.Event(), done())
    made = await begin(door, line("a"), line("b"))
    async with asyncio.timeout(60):
        while True:
            await settle()
            batch = (await door.http.get(f"/batches/{made['id']}")).json()
            if batch["request_counts"]["completed"]:
                break
    cancelling = await door.http.post(f"/batches/{made['id']}/cancel")
    assert cancelling.json()["status"] == "cancelling"
    batch = await ended(door, made["id"])
    assert batch["status"] == "cancelled"
    assert len(await outcomes(door, batch["output_file_id"])) == 1


async def test_an_error_of_the_core_is_the_lines_own() -> None:
    door = Door()
    door.answers(errors.ContextTooLong("too long"))
    batch = await ended(door, (await begin(door, line("a"), line("b")))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    failed = await outcomes(door, batch["error_file_id"])
    codes = [each["body"]["error"]["code"] for each in failed.values()]
    assert codes == ["context_length_exceeded"]


async def test_what_is_no_file_or_no_batch_is_refused() -> None:
    door = Door()
    uploaded = (await upload(door, line("a"))).json()
    assert (uploaded["purpose"], uploaded["filename"]) == ("batch", "in.jsonl")
    form = {"content-type": "multipart/form-data; boundary=x"}
    for call, status, param in (
        (upload(door, line("a"), purpose="fine-tune"), 400, "purpose"),
        (door.http.post("/files", data={"purpose": "batch"}, files={"other": b"x"}), 400, "other"),
        (door.http.post("/files", content=b"nonsense", headers=form), 400, "body"),
        (door.http.post("/files", content=b"--x\r\n\r\nno name", headers=form), 400, "body"),
        (door.http.post("/files", content=b"{}"), 415, "request"),
        (door.http.get("/files/file-none"), 404, "file_id"),
        (door.http.get("/batches/batch_none"), 404, "batch_id"),
        (door.post("/batches", input_file_id="f", endpoint=URL, completion_window="24h"), 404,
         "input_file_id"),
        (door.post("/batches", input_file_id=uploaded["id"], endpoint="/v1/responses",
                   completion_window="24h"), 400, "endpoint"),
        (door.post("/batches", input_file_id=5), 400, "input_file_id"),
    ):  # fmt: skip
        response = await call
        assert response.status_code == status, response.text
        assert error(response)["param"] == param
    assert (await door.http.delete(f"/files/{uploaded['id']}")).json()["deleted"]
    assert (await door.http.get("/files")).json()["data"] == []


def test_files_are_bounded_expire_and_belong_to_their_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = 0.0
    store = FileStore(lambda: time)
    monkeypatch.setattr(files, "MAX_BYTES", 10_000)
    first = store.add("a", "f", "batch", b"x" * 3000)
    with pytest.raises(Refused, match="no room"):
        store.add("a", "f", "batch", b"x" * 3000)  # a tenant has half of the room
    store.add("b", "f", "batch", b"x" * 3000)
    with pytest.raises(Refused, match="no room"):
        store.add("c", "f", "batch", b"x" * 3000)
    with pytest.raises(Refused, match="no such file"):
        store.get("b", first.id)
    with pytest.raises(Refused, match="no such file"):
        store.delete("b", first.id)
    time = files.KEPT_SECONDS + 1.0
    with pytest.raises(Refused, match="no such file"):
        store.get("a", first.id)
    assert not store.of("b")
