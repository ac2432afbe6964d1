"""Every call of OpenAI's API that names a session or a response has its id in the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from core import Core, settle
from openai_door import Door, user

from ruvd.core.ports.engine import EngineText
from ruvd.rpc import auditing


class Recorded:
    """Records of calls: an `auditing.Records`."""

    def __init__(self) -> None:
        self.calls: list[Mapping[str, str | int]] = []

    def add(self, fields: Mapping[str, str | int]) -> None:
        self.calls.append(fields)

    def add_refusal(self, fields: Mapping[str, str | int]) -> None:
        self.calls.append(fields)


async def test_calls_are_recorded_with_the_ids_that_they_are_about() -> None:
    recorded = Recorded()
    core = Core(observers=[auditing.observe])
    door = Door(core, audit=auditing.CallAudit(recorded))

    def last() -> Mapping[str, str | int]:
        return recorded.calls[-1]

    key = {"idempotency-key": "k"}
    created = (await door.post("/conversations", items=[user("q")], headers=key)).json()
    assert last()["session_id"] == created["id"]
    path = f"/conversations/{created['id']}"
    await door.post(path, metadata={"a": "b"})
    assert (last()["method"], last()["session_id"]) == (
        "HTTP POST /v1/conversations/{conversation}", created["id"],
    )  # fmt: skip
    for call in (
        door.http.get(path),
        door.http.get(f"{path}/items"),
        door.http.get(f"{path}/items/msg_0"),
        door.http.delete(f"{path}/items/msg_0"),
        door.post(f"{path}/items", items=[user("more")]),
    ):
        await call
        assert last()["session_id"] == created["id"], last()
    door.answers(EngineText("par"), asyncio.Event())
    running = (await door.post("/responses", model="m", input="q", background=True)).json()
    assert last()["completion_id"] == running["id"].replace("resp_", "cmpl-")
    assert last()["session_id"] == running["conversation"]["id"]
    await settle()
    path = f"/responses/{running['id']}"
    for call in (
        door.http.get(path),
        door.http.delete(path),
        door.http.post(f"{path}/cancel"),
        door.http.get(path),
        door.http.get(f"{path}?stream=true"),
    ):
        await call
        assert last()["completion_id"] == running["id"].replace("resp_", "cmpl-"), last()
