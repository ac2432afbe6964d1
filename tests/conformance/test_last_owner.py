"""A session stays where its KV state is, as long as that replica lives and can be called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conversations import create, turn
from peer_replicas import database
from postgres import Server
from store_replicas import two

from ruvd.core.ports.replicas import SessionElsewhere
from ruvd.stores.postgres.store import PostgresStore


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with database() as started:
        yield started


async def take_turn(store: PostgresStore) -> None:
    begun = await store.begin_turn("s", "", 1)
    assert begun.session is not None
    await store.commit(turn(begun.session, "a"))


async def test_a_turn_is_for_the_last_owner_while_it_lives_and_has_an_address(
    server: Server,
) -> None:
    async with two(server) as (one, other, _):
        await create(one)
        await take_turn(one)
        await take_turn(other)  # without a preference, whoever is asked
        await take_turn(one)
        other.replicas.prefer_last_owner()
        await take_turn(other)  # the last owner has no address
        await take_turn(one)
        await one.replicas.announce("127.0.0.1:1")
        with pytest.raises(SessionElsewhere) as caught:
            await other.begin_turn("s", "", 1)
        assert caught.value.owner is not None
        assert caught.value.owner.id == one.replicas.me
        assert caught.value.owner.address == "127.0.0.1:1"
        # It could not be called, so the turn begins here.
        other.replicas.stay("s")
        await take_turn(other)
        await take_turn(other)
        await take_turn(one)
        await one.close()
        await take_turn(other)
