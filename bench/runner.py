"""The command line, signal handling, progress lines and result files that the benchmarks share."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from bench.machine import describe
from bench.relay_servers import Failed

_T = TypeVar("_T")


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser that prints the module's docstring as help and knows `--json`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def add_ruvd_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--ruvd-flag`, which may be given more than once."""
    text = "an additional flag of `ruvd serve`"
    parser.add_argument("--ruvd-flag", action="append", default=[], metavar="FLAG", help=text)


def origin(module: str) -> dict[str, str]:
    """Returns the machine, date and command, for the head of the figures."""
    return {
        "machine": describe(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "command": shlex.join(["python", "-m", f"bench.{module}", *sys.argv[1:]]),
    }


def run(
    name: str, benchmark: Coroutine[Any, Any, _T], *, runner: Callable[..., _T] = asyncio.run
) -> _T:
    """Runs a benchmark on an event loop and returns its result.

    SIGTERM cancels it, so that it ends its processes. Exits with code 1 and the reason if the
    benchmark raises Failed, and with code 130 if it is interrupted.
    """

    async def cancelled_on_sigterm() -> _T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await benchmark

    try:
        return runner(cancelled_on_sigterm())
    except Failed as failure:
        sys.exit(f"{name}: {failure}")
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit(130)


@asynccontextmanager
async def case_timeout(seconds: float) -> AsyncIterator[None]:
    """Limits the time of one case. Raises Failed when it is exceeded."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Failed(f"a case took more than {seconds:.0f} s") from error


def log_progress(text: str) -> None:
    """Prints a progress line to standard error; standard output is for the figures."""
    print(f"... {text}", file=sys.stderr, flush=True)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes the figures, unless no file was asked for."""
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n")
