"""Audit files for tests: written by the daemon's own parts, with disks that fail on purpose."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruvd.telemetry.audit.chain import Hasher
from ruvd.telemetry.audit.chain_writer import ChainWriter
from ruvd.telemetry.audit.file_output import FileOutput
from ruvd.telemetry.audit.verification import Report, Verifier

PLAIN = Hasher()


class FailingDisk:
    """A disk that takes so many bytes of each write, and nothing when that is 0."""

    def __init__(self, budgets: Iterable[int]) -> None:
        self._budgets = iter(budgets)

    def write(self, descriptor: int, data: bytes) -> int:
        budget = next(self._budgets, len(data))
        if budget == 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(descriptor, data[:budget])


def writer(
    path: Path, hasher: Hasher = PLAIN, *, disk: FailingDisk | None = None, **options: Any
) -> ChainWriter:
    """Returns a writer of a file, which is open."""
    write = disk.write if disk else os.write
    made = ChainWriter(FileOutput(path, hasher, write=write, **options), hasher)
    made.open()
    return made


def event(number: int) -> dict[str, str | int]:
    return {"event": "call", "number": number}


def write_file(path: Path, count: int, hasher: Hasher = PLAIN) -> None:
    """Writes a file with records numbered from 0."""
    made = writer(path, hasher)
    assert made.write([event(number) for number in range(count)]) == count
    made.close()


def verify(*files: Path, hasher: Hasher = PLAIN, **options: Any) -> Report:
    return Verifier(hasher, **options).verify(files)


def is_clean(report: Report) -> bool:
    return not report.findings and report.incomplete is None


def records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file, without lines that are none."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
