"""The description of the machine that a benchmark ran on; figures mean little without it."""

from __future__ import annotations

import datetime
import platform

import psutil


def describe() -> str:
    """Returns one line with date, cores, memory, load and versions."""
    cores = psutil.cpu_count()
    memory = psutil.virtual_memory().total / (1 << 30)
    load = psutil.getloadavg()[0]
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"{now:%Y-%m-%d %H:%M} UTC, {cores} cores, {memory:.0f} GiB, load {load:.1f},"
        f" {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
