"""Evicted and expired sessions in the Python client and in `ruvd chat`."""

from __future__ import annotations

import asyncio

import pytest
from command_line import on_terminal
from running import StartDaemon
from ruvd_client import AsyncClient, RuvdError

SECONDS = 60


async def test_the_client_creates_a_gone_session_anew_only_if_it_is_asked_to(
    daemon: StartDaemon,
) -> None:
    flags = ("--engine", "echo", "--store", "memory", "--max-sessions", "1")
    async with daemon(*flags) as running, AsyncClient(running.socket) as client:
        for name in ("old", "new"):
            await client.create_session(session_id=name)
        with pytest.raises(RuvdError) as told:
            await client.complete("hi", session_id="old").text()
        assert told.value.reason == "SESSION_EVICTED"
        answer = client.complete("hi", session_id="old", recreate_if_gone=True)
        assert await answer.text() == "hi"


async def test_a_chat_asks_before_it_goes_on_in_a_new_session(daemon: StartDaemon) -> None:
    flags = ("--engine", "echo", "--store", "memory", "--max-sessions", "1")
    async with (
        daemon(*flags) as running,
        AsyncClient(running.socket) as client,
        on_terminal(
            "chat", "--address", running.socket, "--session", "mine", term="dumb"
        ) as terminal,
        asyncio.timeout(SECONDS),
    ):

        async def type_and_see(keys: bytes, text: bytes, end: bytes = b"> ") -> None:
            terminal.write(keys)
            terminal.clear()
            await terminal.see(lambda screen: end in screen.partition(text)[2])

        await type_and_see(b"", b">", b" ")
        await type_and_see(b"first\n", b"total")
        await client.create_session(session_id="other")
        await type_and_see(b"second\n", b"was evicted", b"[y/N] ")
        await type_and_see(b"n\n", b"n", b"> ")
        with pytest.raises(RuvdError):
            await client.get_session("mine")
        await type_and_see(b"third\n", b"was evicted", b"[y/N] ")
        await type_and_see(b"y\n", b"total")
        assert (await client.get_session("mine")).message_count == 2
        await type_and_see(b"fourth\n", b"total")
        assert (await client.get_session("mine")).message_count == 4
        terminal.write(b"\x04")
        await terminal.see(lambda screen: b"continue with" in screen)
        assert await terminal.process.wait() == 0
