"""The method `health` of the Python client, with one address and with several."""

from __future__ import annotations

import asyncio
import signal

from running import StartDaemon
from ruvd_client import AsyncClient, Client

ECHO = ("--engine", "echo")


def health(addresses: str) -> bool:
    with Client(addresses) as client:
        return client.health()


async def test_health_is_true_if_one_of_the_daemons_accepts_turns(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as draining, daemon(*ECHO) as ready:
        draining.process.send_signal(signal.SIGUSR1)
        await draining.logged("readiness turned off")
        nobody = f"unix:{ready.folder}/nobody.sock"
        expected = {
            ready.address: True,
            draining.socket: False,
            nobody: False,
            f"{draining.address},{nobody}": False,
            f"{draining.socket},{nobody},{ready.address}": True,
        }
        for addresses, is_ready in expected.items():
            assert await asyncio.to_thread(health, addresses) is is_ready, addresses
            async with AsyncClient(addresses) as client:
                assert await client.health() is is_ready, addresses
