"""The `ruvd metrics` command, once and with --watch, against a real daemon."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Awaitable, Callable

from command_line import beside, on_terminal
from ruvd_client import AsyncClient

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]


async def test_a_metric_without_a_value_says_why(address: str, ruvd: Ruvd) -> None:
    async with AsyncClient(address) as client:
        await client.complete("hello there", session_id="s").text()
    done = await ruvd("metrics", "--address", address)
    assert done.returncode == 0
    rows = {row[0]: row[1:] for line in done.stdout.splitlines() if (row := _cells(line))}
    assert rows["session completions"][0] == "1"
    assert rows["cache hit rate"][0].endswith("%")
    assert rows["mean stateless latency"] == ["-", "no stateless completions yet"]
    assert rows["latency reduction"] == ["-", "no stateless completions yet"]
    figures = json.loads((await ruvd("metrics", "--json", "--address", address)).stdout)
    assert figures["session_completions"] == "1"
    assert "avg_stateless_latency" not in figures


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


async def test_watching_the_metrics_ends_cleanly_with_ctrl_c(address: str) -> None:
    arguments = ("metrics", "--watch", "--interval", "0.1", "--json", "--address", address)
    async with beside(*arguments) as process, asyncio.timeout(60):
        assert process.stdout is not None
        for _ in range(3):
            assert "total_sessions" in json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")


async def test_on_a_terminal_the_metrics_are_redrawn_with_a_plot(address: str) -> None:
    arguments = ("metrics", "--watch", "--interval", "0.1", "--address", address)
    async with (
        on_terminal(*arguments) as terminal,
        asyncio.timeout(60),
        AsyncClient(address) as client,
    ):
        await terminal.see(lambda screen: screen.count(b"session latency per interval") >= 2)
        await client.complete("hello there", session_id="s").text()
        await terminal.see(lambda screen: "█".encode() in screen)
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == 0
