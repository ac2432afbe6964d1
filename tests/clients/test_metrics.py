"""The `ruvd metrics` command, once and with --watch, against a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

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
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ruvd", *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        for _ in range(3):
            assert "total_sessions" in json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")


async def test_on_a_terminal_the_metrics_are_redrawn_with_a_plot(address: str) -> None:
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ruvd", "metrics", "--watch", "--interval", "0.1",
        "--address", address,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
    )  # fmt: skip
    os.close(theirs)
    screen = b""
    async with asyncio.timeout(30), AsyncClient(address) as client:
        while screen.count(b"session latency per interval") < 2:
            screen += await asyncio.to_thread(os.read, ours, 65_536)
        await client.complete("hello there", session_id="s").text()
        while "█".encode() not in screen:
            screen += await asyncio.to_thread(os.read, ours, 65_536)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    os.close(ours)
