"""The PostgreSQL store with a synchronous standby: what is acknowledged has been replicated."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conversations import completed, create, turn
from postgres import Server, running
from store_replicas import WAIT_SECONDS, execute, replica

from ruvd.core.errors import StoreUnavailable
from ruvd.stores.postgres.store import PostgresStore


@contextmanager
def primary_and_standby() -> Iterator[tuple[Server, Server]]:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "primary") as primary:
            standby = primary.copy_to(Path(directory) / "standby")
            standby.start()
            try:
                primary.replicate_synchronously()
                yield primary, standby
            finally:
                standby.stop(signal.SIGKILL)


@contextmanager
def frozen(standby: Server) -> Iterator[None]:
    assert standby.process
    pids = [*standby.children(), standby.process.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def recorded(store: PostgresStore) -> list[object]:
    """Returns the answer to each look-up of the request, or its error."""
    found = await asyncio.gather(
        store.idempotency_record("s", "r"),
        store.completion("c"),
        store.begin_turn("s", "r", 2),
        return_exceptions=True,
    )
    return list(found)


async def test_a_turn_begins_without_the_standby_and_is_acknowledged_with_it() -> None:
    with primary_and_standby() as (primary, standby):
        async with replica(primary.new_schema(), timeout=1.0, lease=600.0) as store:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    try:
                        await create(store)
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)
            with frozen(standby):
                begun = await store.begin_turn("s", "r", 1)
                assert begun.session is not None
                commit = completed(turn(begun.session, "a"), "r", "c")
                with pytest.raises(StoreUnavailable):
                    await store.commit(commit)
                # The wait for the standby was given up, so the record is there, and may get lost.
                found = await recorded(store)
                assert [type(each) for each in found] == [StoreUnavailable] * 3
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    found = await recorded(store)
                    if not any(isinstance(each, StoreUnavailable) for each in found):
                        break
                    await asyncio.sleep(0.1)
            record = commit.idempotency_record
            assert found[:2] == [record, ("s", record)]


async def test_a_commit_whose_wait_for_the_standby_is_cancelled_waits_again() -> None:
    with primary_and_standby() as (primary, standby):
        conninfo = primary.new_schema()
        async with replica(conninfo, timeout=WAIT_SECONDS, lease=600.0) as store:
            made = await create(store)
            with frozen(standby):
                committing = asyncio.create_task(store.commit(completed(turn(made, "a"), "r", "c")))
                for _ in range(2):  # the commit, and the one that confirms it
                    await cancelled_wait(conninfo)
                assert not committing.done()
            async with asyncio.timeout(WAIT_SECONDS):
                await committing


async def cancelled_wait(conninfo: str) -> None:
    """Cancels a wait for the standby, as an operator may do, once there is one."""
    statement = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with asyncio.timeout(WAIT_SECONDS):
        while not execute(conninfo, statement):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)
