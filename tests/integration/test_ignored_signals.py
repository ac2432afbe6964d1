"""Signals that are ignored at the start, as a shell without job control ignores SIGINT for
`command &`, and nohup SIGHUP: the daemon handles its own anyway, a command respects them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command_line import beside
from running import StartDaemon, start_serve

IGNORING = ("sh", "-c", 'trap "" "$1"; shift; exec "$@"', "sh")


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGQUIT"])
def test_a_process_that_a_test_starts_takes_the_signal(name: str) -> None:
    program = f"import signal; print(signal.getsignal(signal.{name}) is signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["INT", "HUP", "QUIT"])
def test_a_process_that_a_test_starts_takes_the_signal_also_where_the_tests_ignore_it(
    name: str,
) -> None:
    claim = f"{__file__}::{test_a_process_that_a_test_starts_takes_the_signal.__name__}"
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", claim)
    done = subprocess.run([*IGNORING, name, *pytest_], capture_output=True, text=True, timeout=90)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


async def test_a_daemon_that_is_started_with_sigint_ignored_drains_on_it() -> None:
    with TemporaryDirectory(prefix="ruvd-") as name:  # short, as a socket's path must be
        flags = ("--engine", "echo", "--listen", f"unix:{name}/r.sock", "--store", "memory")
        running = await start_serve(*flags, folder=Path(name), under=(*IGNORING, "INT"))
        try:
            await running.listening(1)
            running.process.send_signal(signal.SIGINT)
            await running.logged("draining")
            assert await running.ended() == 0
        finally:
            if running.process.returncode is None:
                running.kill()
                await running.ended()


async def test_a_batch_that_is_started_with_sigint_ignored_runs_on(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": "one two three"}]}
    lines = [json.dumps({"custom_id": f"q{n}", "body": body}) for n in range(30)]
    asked.write_text("\n".join(lines))
    async with daemon("--engine", "echo", "--echo-delay-seconds", "0.02") as running:
        flags = ("--out", str(out), "--address", running.address, "--max-concurrency", "2")
        async with (
            asyncio.timeout(60),
            beside("batch", str(asked), *flags, under=(*IGNORING, "INT")) as process,
        ):
            while not out.exists() or not out.read_bytes():
                assert process.returncode is None
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGINT)
            output, _ = await process.communicate()
        assert (process.returncode, out.read_bytes().count(b"\n")) == (0, 30), output


async def test_a_demo_that_is_started_by_nohup_outlives_its_terminal() -> None:
    demo = ("demo", "--engine", "echo", "--turns", "2")
    async with asyncio.timeout(120):
        async with beside(*demo, under=(*IGNORING, "HUP")) as process:
            assert process.stdout is not None
            assert await process.stdout.readline()
            process.send_signal(signal.SIGHUP)
            output, _ = await process.communicate()
    assert process.returncode == 0, output
