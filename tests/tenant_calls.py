"""A daemon whose callers ann and bob are tenants, and stubs that call it as one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from running import RunningDaemon, StartDaemon

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2_grpc as pb_grpc


class Tenant:
    """A tenant's stub and token."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.token = token
        self._stub = pb_grpc.SessionServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        return lambda request, **call: method(request, metadata=self._metadata, **call)


@asynccontextmanager
async def tenants(
    start: StartDaemon, folder: Path, *flags: str, limits: Sequence[str]
) -> AsyncIterator[tuple[RunningDaemon, Tenant, Tenant]]:
    """Runs a daemon with these limits of tenants, and yields it with ann and bob."""
    made = [tokens.create(name, Role.USER) for name in ("ann", "bob")]
    file = folder / "tokens"
    file.write_text("".join(f"{line}\n" for _, line in made))
    rules = [part for limit in limits for part in ("--tenant-limits", limit)]
    async with (
        start("--tokens-file", str(file), *rules, *flags) as running,
        grpc.aio.insecure_channel(running.socket) as channel,
    ):
        yield running, Tenant(channel, made[0][0]), Tenant(channel, made[1][0])
