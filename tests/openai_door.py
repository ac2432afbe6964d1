"""OpenAI's API in this process, over a core on a memory store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from core import Core
from fakes import Step

from ruvd.core.completions.batch import Batches
from ruvd.core.ports.background import start_unsupervised
from ruvd.http.openai.application import build
from ruvd.http.openai.endpoint import Gate
from ruvd.http.openai.parts import Parts
from ruvd.rpc.ports import CallAudit
from ruvd.rpc.validation import RequestLimits
from ruvd.server.memory_budget import MemoryBudget

MAX_REQUEST_BYTES = 1 << 20


@dataclass
class Door:
    """The API, and the core behind it."""

    core: Core = field(default_factory=Core)
    memory_bytes: int = 1 << 32
    audit: CallAudit | None = None

    def __post_init__(self) -> None:
        core = self.core
        limits = RequestLimits(max_request_bytes=MAX_REQUEST_BYTES)
        batches = Batches(core.completions, core.clock, 4)
        parts = Parts(
            core.sessions, core.commands, core.completions, batches, core.engine, limits,
            core.policy, core.memory,
        )  # fmt: skip
        memory = MemoryBudget(self.memory_bytes, MAX_REQUEST_BYTES, on_change=lambda _: None)
        self.app = build(
            parts, Gate(None, memory, None, self.audit, MAX_REQUEST_BYTES), start_unsupervised
        )
        transport = httpx.ASGITransport(app=self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost/v1")

    def answers(self, *chunks: Step) -> None:
        """Lets the engine give one more answer."""
        self.core.engine.scripts.append(list(chunks))

    async def chat(self, *messages: dict[str, Any], **more: Any) -> httpx.Response:
        """Calls chat completions."""
        headers = more.pop("headers", {})
        body = {"model": "m", "messages": messages, **more}
        return await self.http.post("/chat/completions", json=body, headers=headers)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """Posts JSON."""
        headers = body.pop("headers", {})
        return await self.http.post(path, json=body, headers=headers)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def events(response: httpx.Response) -> Sequence[str]:
    """Returns the data of the server-sent events."""
    lines = response.text.splitlines()
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def error(response: httpx.Response) -> dict[str, Any]:
    """Returns the error, whose shape is OpenAI's."""
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found
