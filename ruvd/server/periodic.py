"""The daemon's work at intervals and after events of sessions: functions for background tasks."""

import asyncio
import contextlib
from functools import partial

from ruvd.core.errors import DataCorrupted, EngineUnavailable, StoreUnavailable
from ruvd.core.ports.engine import Engine, PrefixCache
from ruvd.core.ports.events import Event, SessionCreationAborted, SessionGone
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.rpc.health import Readiness
from ruvd.server.background import BackgroundTasks
from ruvd.server.composition import Core
from ruvd.server.observers import Observers
from ruvd.server.system_clock import SystemClock, watch_wall_clock

_RETRY_SECONDS = 2.0


def start_session_tasks(
    background: BackgroundTasks,
    core: Core,
    clock: SystemClock,
    readiness: Readiness,
    sweep_seconds: float,
) -> None:
    """Starts what deletes expired sessions, calls a failed store, and watches the wall clock."""
    background.start("sweep", partial(_sweep_sessions, core.commands, sweep_seconds))
    background.start("store retry", partial(_retry_store, core.sessions, readiness))
    background.start("clock", partial(_watch_wall_clock, clock, core.commands))


def start_cache_tasks(
    background: BackgroundTasks, engine: Engine, core: Core, observers: Observers
) -> None:
    """Starts what evaluates prompts ahead and what drops the KV states of ended sessions."""
    if prefix_cache := engine.prefix_cache:
        observers.add(partial(_drop_ended_session, prefix_cache))
        drop = partial(_drop_stale_states, prefix_cache, engine, core.sessions)
        background.start("dropping of stale KV states", drop)
    observers.add(core.compactions)
    observers.add(core.ahead_compaction)
    background.start("compaction", core.ahead_compaction.run)
    if prewarmer := core.prewarmer:
        observers.add(prewarmer)
        background.start("prewarming", prewarmer.run)


def _drop_ended_session(prefix_cache: PrefixCache, event: Event) -> None:
    """Drops the KV state of a session that has ended. An Observer."""
    if isinstance(event, (SessionGone, SessionCreationAborted)):
        prefix_cache.forget(event.session_id)


async def _drop_stale_states(
    prefix_cache: PrefixCache, engine: Engine, sessions: SessionRegistry
) -> None:
    """Drops, once the engine is up, the KV states of sessions that no longer exist.

    The engine did not hear of their end: it was not up yet, another engine ran, or the daemon was
    killed.
    """
    while True:
        with contextlib.suppress(EngineUnavailable, StoreUnavailable):  # both are observed
            await engine.ready()
            for session_id in prefix_cache.remembered():
                with contextlib.suppress(DataCorrupted):  # observed; the session exists
                    in_use = sessions.turn_queue.in_use()
                    if session_id not in in_use and await sessions.current(session_id) is None:
                        prefix_cache.forget(session_id)
            return
        await asyncio.sleep(_RETRY_SECONDS)


async def _retry_store(sessions: SessionRegistry, readiness: Readiness) -> None:
    """Calls a store that is down every two seconds.

    A store recovers with a call, and clients may send none to a daemon that is not ready.
    """
    while True:
        await asyncio.sleep(_RETRY_SECONDS)
        if not readiness.store.up:
            with contextlib.suppress(StoreUnavailable):  # observed
                await sessions.counts()


async def _sweep_sessions(commands: SessionCommands, interval_seconds: float) -> None:
    """Deletes expired sessions at an interval."""
    while True:
        await asyncio.sleep(interval_seconds)
        with contextlib.suppress(StoreUnavailable):  # observed; the next round tries again
            await commands.sweep()


async def _watch_wall_clock(clock: SystemClock, commands: SessionCommands) -> None:
    """Logs steps of the wall clock, and sweeps after each, because a sweep stores it."""

    async def sweep() -> None:
        with contextlib.suppress(StoreUnavailable):  # observed; a later sweep stores it
            await commands.sweep()

    await watch_wall_clock(clock, sweep)
