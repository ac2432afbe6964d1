"""`ruvd doctor` says whether the replicas can call each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peer_replicas import database
from postgres import Server
from store_replicas import two

from ruvd.core.ports.diagnosis import Finding
from ruvd.stores.postgres.diagnosis import diagnose


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with database() as started:
        yield started


async def finding(conninfo: str) -> Finding:
    found = await diagnose(conninfo, password=lambda: "", timeout_seconds=30, prepare=True)
    return next(each for each in found if each.name == "replicas")


async def test_replicas_without_an_address_of_their_own_are_found(server: Server) -> None:
    async with two(server) as (one, other, conninfo):
        found = await finding(conninfo)
        assert (found.value, found.is_risk) == ("2 running, none with peer_listen", False)
        await one.replicas.announce("127.0.0.1:1")
        found = await finding(conninfo)
        assert (found.value, found.is_risk) == ("2 running, 1 without peer_listen", True)
        await other.replicas.announce("127.0.0.1:2")
        found = await finding(conninfo)
        assert (found.value, found.is_risk) == ("2 running", False)
        await other.replicas.announce("127.0.0.1:1")  # which supersedes the other replica
        await one.replicas.announce("127.0.0.1:3")
        assert not (await finding(conninfo)).is_risk


async def test_two_replicas_with_one_address_are_a_risk(server: Server) -> None:
    async with two(server) as (one, other, conninfo):
        await one.replicas.announce("127.0.0.1:1")
        await other.replicas.announce("127.0.0.1:1")
        await one._lease.renew()  # as it does by itself
        found = await finding(conninfo)
        assert found.is_risk
        assert "same peer_address" in found.meaning
