"""A transport without a network, whose responses are scripted. It is made for virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ruvd.engines.http.transport import Request

# Longer than every timeout.
NEVER = 1e6


@dataclass(frozen=True)
class Script:
    """One response. Its head comes after `head_seconds`; numbers in the body are pauses."""

    body: Sequence[bytes | float] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    head_seconds: float = 0.0


class ScriptedTransport:
    """Plays `scripts`, one for each request, and then `script` for ever."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.scripts: deque[Script] = deque()
        self.requests: list[Request] = []

    async def send(self, request: Request) -> ScriptedResponse:
        self.requests.append(request)
        script = self.scripts.popleft() if self.scripts else self.script
        await asyncio.sleep(script.head_seconds)
        return ScriptedResponse(script)

    async def aclose(self) -> None:
        pass


class ScriptedResponse:
    """A response as its script says."""

    def __init__(self, script: Script) -> None:
        self.status = script.status
        self._headers = script.headers
        self._steps: Iterator[bytes | float] = iter(script.body)

    @property
    def is_whole(self) -> bool:
        return False

    def header(self, name: str) -> str:
        return self._headers.get(name.lower(), "")

    async def read(self) -> bytes:
        for step in self._steps:
            if isinstance(step, bytes):
                return step
            await asyncio.sleep(step)
        return b""

    async def aclose(self) -> None:
        self._steps = iter(())
