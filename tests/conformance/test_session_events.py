"""Each session that is removed from a store is announced exactly once, whatever removed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import TypeVar

import pytest
from core import Core, failed, settle
from fakes import done

from ruvd.core.errors import CompletionCancelled, EngineUnavailable, SessionExpired
from ruvd.core.model import Started
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import SessionCreated, SessionCreationAborted, SessionGone
from ruvd.core.ports.store import Gone, Store
from ruvd.core.sessions.commands import NewFork
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.stores.memory import MemoryStore

T = TypeVar("T")

IDLE_SECONDS = 10.0


@pytest.fixture
def core(store: Store) -> Core:
    return Core(
        policy=SessionPolicy(idle_timeout_seconds=IDLE_SECONDS, max_sessions=2), store=store
    )


def session_events(core: Core) -> list[object]:
    """The events about sessions since the last call."""
    kinds = SessionCreated | SessionGone | SessionCreationAborted
    found: list[object] = [event for event in core.events if isinstance(event, kinds)]
    core.events.clear()
    return found


async def expired(core: Core, session_id: str) -> None:
    """Make a session that has expired and that no sweep has removed yet."""
    await core.commands.create(NewSession(session_id))
    core.clock.advance(IDLE_SECONDS)
    core.events.clear()


async def test_a_session_created_under_an_expired_id_announces_the_expired_one_first(
    core: Core,
) -> None:
    await expired(core, "s")
    await core.commands.create(NewSession("s"))
    assert session_events(core) == [SessionGone("s", "idle"), SessionCreated("s")]


async def test_a_fork_into_an_expired_id_announces_the_expired_session_first(core: Core) -> None:
    await expired(core, "s")
    await core.commands.create(NewSession("parent"))
    core.events.clear()
    await core.commands.fork(NewFork("parent", session_id="s"))
    assert session_events(core) == [SessionGone("s", "idle"), SessionCreated("s")]


async def test_a_completion_in_an_expired_session_announces_its_end_before_it_generates(
    core: Core,
) -> None:
    """The engine must drop the old conversation's cache, and keep the new one's."""
    await core.say("old")
    core.clock.advance(IDLE_SECONDS)
    core.events.clear()
    gate = asyncio.Event()
    core.engine.scripts = [[gate, EngineText("new"), done()]]
    async with aclosing(core.start("new", recreate_if_gone=True).events()) as events:
        assert isinstance((await anext(events)).event, Started)
        assert session_events(core) == [SessionGone("s", "idle")]
        gate.set()
        async for _ in events:
            pass
    assert session_events(core) == [SessionCreated("s")]
    assert await core.history() == ["new", "new"]


async def test_a_completion_that_fails_in_an_expired_session_announces_no_creation(
    core: Core,
) -> None:
    await expired(core, "s")
    core.engine.scripts = [[EngineUnavailable("gone")]]
    await failed(core.start(recreate_if_gone=True), EngineUnavailable)
    assert session_events(core) == [SessionGone("s", "idle"), SessionCreationAborted("s")]
    assert await core.commands.sweep() == 0
    # Nothing was created, so the next caller is still told.
    await failed(core.start(), SessionExpired)


@pytest.mark.parametrize("require_existing", [True, False])
async def test_a_completion_that_is_told_of_the_expiry_leaves_the_session_to_the_sweep(
    core: Core, *, require_existing: bool
) -> None:
    await expired(core, "s")
    await failed(core.start(require_existing=require_existing), SessionExpired)
    assert session_events(core) == []
    assert await core.commands.sweep() == 1
    assert session_events(core) == [SessionGone("s", "idle")]


async def test_at_capacity_an_expired_session_is_announced_as_idle_and_a_live_one_as_evicted(
    core: Core,
) -> None:
    await core.commands.create(NewSession("expired", idle_timeout_seconds=1))
    await core.commands.create(NewSession("old"))
    core.clock.advance(1)
    core.events.clear()
    await core.commands.create(NewSession("a"))
    assert session_events(core) == [SessionGone("expired", "idle"), SessionCreated("a")]
    core.clock.advance(1)
    await core.commands.create(NewSession("b"))
    assert session_events(core) == [SessionGone("old", "capacity"), SessionCreated("b")]


class UnacknowledgedStore(MemoryStore):
    """A store whose deletions take effect some time before the caller learns of them."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted = asyncio.Event()
        self.acknowledged = asyncio.Event()

    async def end(self, session_id: str, *, gone: Gone | None = None, now: float = 0.0) -> bool:
        return await self._acknowledge(await super().end(session_id, gone=gone, now=now))

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        return await self._acknowledge(await super().expire(now, protected))

    async def _acknowledge(self, result: T) -> T:
        self.deleted.set()
        await self.acknowledged.wait()
        return result


async def end_session(core: Core) -> None:
    await core.commands.end("s")


async def sweep(core: Core) -> None:
    core.clock.advance(IDLE_SECONDS)
    await core.commands.sweep()


async def complete_anew(core: Core) -> None:
    core.clock.advance(IDLE_SECONDS)
    completion = core.start(recreate_if_gone=True)
    try:
        await completion.ended()
    except asyncio.CancelledError:
        completion.cancel(CompletionCancelled("cancelled"))
        raise


@pytest.mark.parametrize(
    ("call", "reason"), [(end_session, "client"), (sweep, "idle"), (complete_anew, "idle")]
)
async def test_a_session_is_announced_although_whoever_removed_it_was_cancelled(
    call: Callable[[Core], Coroutine[None, None, None]], reason: str
) -> None:
    store = UnacknowledgedStore()
    core = Core(policy=SessionPolicy(idle_timeout_seconds=IDLE_SECONDS), store=store)
    await core.commands.create(NewSession("s"))
    core.events.clear()
    task = asyncio.create_task(call(core))
    async with asyncio.timeout(30):
        await store.deleted.wait()
    task.cancel()
    await settle()
    store.acknowledged.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await core.completions.drain(30)
    assert [event for event in session_events(core) if isinstance(event, SessionGone)] == [
        SessionGone("s", reason)
    ]
