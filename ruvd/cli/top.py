"""`ruvd top`: shows what a daemon does now, again and again, on a terminal or as JSON.

It needs the API's address, and for the running completions and the memory also the admin socket. A
daemon that goes away is shown as such until it is back.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter, validators
from rich.live import Live

from ruvd.cli import top_json, top_screen
from ruvd.cli.address import Address, default_address
from ruvd.cli.administration import socket_of_settings
from ruvd.cli.console import fail, out
from ruvd.cli.terminal import AsJson
from ruvd.cli.top_readings import Reading, TopReader

_MAX_ROWS = 1000


def top(
    *,
    interval: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0.1, lte=3600), help="Seconds between two readings."
        ),
    ] = 2.0,
    sessions: Annotated[
        int,
        Parameter(
            validator=validators.Number(gte=0, lte=_MAX_ROWS),
            help="Sessions to show, the most recently used.",
        ),
    ] = 20,
    completions: Annotated[
        int,
        Parameter(
            validator=validators.Number(gte=1, lte=_MAX_ROWS),
            help="Completions to show, those that run for longest.",
        ),
    ] = 20,
    once: Annotated[bool, Parameter(negative=(), help="Print one reading and end.")] = False,
    as_json: AsJson = False,
    admin_address: Annotated[
        str,
        Parameter(
            env_var="RUVD_ADMIN_ADDRESS",
            help="Admin socket of the daemon, unix:PATH, or an address of its API if your "
            "credential has the role admin. none: show only what the API tells. Default: the admin "
            "socket of the settings.",
            show_default=False,
        ),
    ] = "",
    address: Address = default_address,
) -> int:
    """Runs `ruvd top`; returns its exit code, with --once 1 if there is no daemon."""
    with ExitStack() as stack:
        admin, problem = _administration(address, admin_address)
        try:
            reader = TopReader(stack, address, admin, sessions, completions)
        except OSError as error:
            fail(f"cannot read {error.filename}: {error.strerror}")
        except ValueError as error:
            fail(str(error))
        readings = _readings(reader, problem, interval)
        if once:
            reading = next(readings)
            _print(reading, as_json=as_json, indent=2)
            return int(reading.is_away)
        with suppress(KeyboardInterrupt):
            _watch(readings, as_json=as_json)
    return 0


def _administration(address: Address, admin_address: str) -> tuple[Address | None, str]:
    """Returns the address of administration, and why there is none."""
    if admin_address == "none":
        return None, ""
    try:
        found = admin_address or socket_of_settings()
    except ValueError as error:
        return None, f"administration: {error}"
    return replace(address, address=found), ""


def _readings(reader: TopReader, problem: str, interval: float) -> Iterator[Reading]:
    while True:
        reading = reader.read()
        if problem and not reading.is_away:
            reading = replace(reading, problems=[*reading.problems, problem])
        yield reading
        time.sleep(interval)


def _watch(readings: Iterator[Reading], *, as_json: bool) -> None:
    if as_json or not out.is_terminal:
        for reading in readings:
            _print(reading, as_json=as_json)
        return
    before: Reading | None = None
    with Live(console=out, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        for reading in readings:
            if not reading.is_away:
                before = reading
            live.update(top_screen.render(reading, before), refresh=True)


def _print(reading: Reading, *, as_json: bool, indent: int | None = None) -> None:
    if as_json:
        out.out(json.dumps(top_json.to_json(reading), indent=indent, ensure_ascii=False))
    else:
        out.print(top_screen.render(reading), markup=False)
    out.file.flush()
