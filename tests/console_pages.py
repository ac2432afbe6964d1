"""The console over the core in one process, and what a test reads of its pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape

import httpx
from core import Core

from ruvd.core.completions.activity import Activity
from ruvd.core.sessions.turn_pages import TurnPages
from ruvd.core.statistics import Statistics
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.http.console.app import build
from ruvd.http.console.gate import Gate
from ruvd.http.console.sources import Sources
from ruvd.http.scopes import ASGIApp
from ruvd.rpc.admin.ports import MemoryUse
from ruvd.rpc.health import Health, Readiness
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.identity.caller import Identity
from ruvd.server.administration import Administration

_MIB = 1 << 20


@dataclass
class ConsoleOfCore:
    """A console over a core. Its observers follow what the core tells."""

    core: Core = field(default_factory=Core)
    check_memory: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.readiness = Readiness(Health("1.2.3"))
        self.statistics = TenantStatistics(Statistics())
        self.core.observers += [self.readiness, self.statistics.all, self.statistics]
        self.administration = Administration("1.2.3", self.readiness)
        self.administration.memory_use = lambda: MemoryUse(100 * _MIB, 512 * _MIB)

    def sources(self) -> Sources:
        core = self.core
        return Sources(
            core.sessions,
            TurnPages(core.sessions, core.store),
            Activity(core.sessions, core.completions, core.clock),
            self.statistics,
            self.administration,
            core.engine,
            core.clock,
        )

    async def application(self, callers: Authenticator | None = None) -> ASGIApp:
        """Returns the application of the pages."""
        gate = Gate(callers, None, self.check_memory)
        return await asyncio.to_thread(build, self.sources(), gate)

    @asynccontextmanager
    async def browser(
        self, identity: Identity | None = None, callers: Authenticator | None = None
    ) -> AsyncIterator[httpx.AsyncClient]:
        """Yields a client whose requests are those of the identity, or are checked by `callers`."""
        if identity:
            callers = Authenticator(socket=identity)
        application = await self.application(callers)
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


def text_of(page: str) -> str:
    """Returns what a page says, without its tags and with single spaces."""
    body = page.partition("<main>")[2] or page
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())
