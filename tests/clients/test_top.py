"""`ruvd top` against real daemons: once, as JSON, on a terminal, and while the daemon is away."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from command_line import beside, on_terminal, run
from running import RunningDaemon, StartDaemon
from ruvd_client import AsyncClient

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role

ECHO = ("--engine", "echo")
SLOW = (*ECHO, "--echo-delay-seconds", "0.05")


def addresses(running: RunningDaemon) -> tuple[str, ...]:
    return ("--address", running.address, "--admin-address", running.admin_socket)


async def once(*arguments: str) -> dict[str, Any]:
    done = await run("top", "--once", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    reading: dict[str, Any] = json.loads(done.stdout)
    return reading


async def test_one_reading_has_the_stream_that_runs_and_the_sessions_last_used_first(
    daemon: StartDaemon,
) -> None:
    async with daemon(*SLOW) as running, AsyncClient(running.address) as client:
        for session_id in ("older", "newer"):
            await client.complete("hi", session_id=session_id).text()
        async with client.complete("word " * 2000, session_id="streaming") as answer:
            for _ in range(5):
                await anext(answer)
            reading = await once(*addresses(running))
            shown = await run("top", "--once", *addresses(running))
    # A session is stored with its first turn.
    assert [each["id"] for each in reading["sessions"]] == ["newer", "older"]
    (stream,) = reading["running"]
    assert (stream["session_id"], stream["phase"]) == ("streaming", "PHASE_ANSWER")
    assert stream["output_pieces"] >= 5
    assert reading["ready"] is True
    status = reading["status"]
    assert (status["engine_up"], status["store_up"]) == (True, True)
    assert 0 < int(status["memory_bytes"]) < int(status["memory_limit_bytes"])
    assert reading["problems"] == []
    assert "streaming" in shown.stdout
    assert "answer" in shown.stdout


async def test_without_administration_it_shows_what_the_api_tells(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running:
        reading = await once("--address", running.address, "--admin-address", "none")
        assert (reading["status"], reading["problems"]) == (None, [])
        away = f"unix:{running.folder}/none.sock"
        reading = await once("--address", running.address, "--admin-address", away)
        assert reading["status"] is None
        assert reading["problems"][0].startswith(f"administration: no daemon at {away}")


async def test_a_token_with_the_role_admin_is_enough(daemon: StartDaemon, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = {role: tokens.create("acme", role) for role in (Role.ADMIN, Role.USER)}
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    async with daemon(*ECHO, "--tokens-file", str(file)) as running:
        at = ("--address", running.address, "--admin-address", running.address)
        for role, has_status in ((Role.ADMIN, True), (Role.USER, False)):
            held = tmp_path / role.value
            held.write_text(made[role][0])
            reading = await once(*at, "--token-file", str(held))
            assert (reading["status"] is not None) is has_status
            assert bool(reading["problems"]) is not has_status
        done = await run("top", "--once", *at)
    assert "UNAUTHENTICATED" in done.stdout


async def test_a_daemon_that_goes_away_and_returns_is_shown_as_such(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as first:
        admin = first.admin_socket.removeprefix("unix:")
        at = ("--address", first.socket, "--admin-address", first.admin_socket)
        async with beside("top", "--json", "--interval", "0.1", *at) as process:
            assert process.stdout is not None

            async def shown(*, reachable: bool) -> None:
                assert process.stdout is not None
                async with asyncio.timeout(60):
                    while json.loads(await process.stdout.readline())["reachable"] is not reachable:
                        pass

            await shown(reachable=True)
            await first.stop()
            await shown(reachable=False)
            assert (await run("top", "--once", *at)).returncode == 1
            async with daemon(*ECHO, "--admin-listen", f"unix:{admin}", folder=first.folder):
                await shown(reachable=True)
            process.send_signal(signal.SIGINT)
            _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")


async def test_on_a_terminal_the_table_is_redrawn(daemon: StartDaemon) -> None:
    async with (
        daemon(*SLOW) as running,
        on_terminal("top", "--interval", "0.1", *addresses(running)) as terminal,
        AsyncClient(running.address) as client,
        asyncio.timeout(60),
    ):
        await terminal.see(lambda screen: b"nothing" in screen)
        async with client.complete("word " * 2000, session_id="streaming") as answer:
            await anext(answer)
            terminal.clear()
            await terminal.see(lambda screen: b"streaming" in screen and b"answer" in screen)
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == 0
