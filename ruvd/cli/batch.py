"""`ruvd batch`: a file in OpenAI's batch format, answered into another, to be gone on with.

The out file is the only memory: each outcome is in it as soon as it is there, and a run does what
has no line yet. A failed item keeps its line, and so is not run again, unless that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated

from cyclopts import Parameter, validators
from ruvd_client import BatchOutcome, Client, RuvdError
from ruvd_client.v1.session_service_pb2 import CompleteRequest

from ruvd.cli.batch_files import STREAM, FilesRefused, Output, items, opened_input, plan
from ruvd.cli.batch_lines import Item, completed, failed, to_request
from ruvd.cli.batch_progress import Meter, Tally
from ruvd.cli.openai_messages import LineRefused
from ruvd.cli.terminal import Address, complain, connected, default_address, err, fail

_USAGE, _INTERRUPTED = 2, 130


def _no_flag(_: type, path: Path) -> None:
    if str(path).startswith("-") and path != STREAM:
        raise ValueError(f"{path} looks like a flag; a file of that name is ./{path}")


def batch(
    file: Annotated[Path, Parameter(allow_leading_hyphen=True, validator=_no_flag)],
    /,
    *,
    out: Annotated[Path, Parameter(help="Append the outcomes there, as they come.")],
    max_concurrency: Annotated[
        int | None,
        Parameter(
            validator=validators.Number(gte=1),
            help="Side by side at most; otherwise the daemon's batch_concurrency.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, Parameter(negative=(), help="Run those again that failed in an earlier run.")
    ] = False,
    address: Address = default_address,
) -> int:
    """Answer every line of FILE into OUT; the exit code. `ruvd batch --help` says more."""
    try:
        with opened_input(file, out) as lines, Output(out) as output:
            if retry_failed:
                output.forget_failed()
            work = plan(lines, output)
            tally = Tally(work.items, work.done, work.failed)
            with connected(address) as client:
                return _Run(client, lines, output, tally).all(max_concurrency or 0)
    except FilesRefused as refusal:
        complain(str(refusal))
        return _USAGE
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}")


class _Run:
    """One run over the items that are to be done."""

    def __init__(self, client: Client, lines: IO[bytes], output: Output, tally: Tally) -> None:
        self._client = client
        self._lines = lines
        self._output = output
        self._tally = tally
        self._meter = Meter(tally)
        self._asked: dict[int, Item] = {}

    def all(self, max_concurrency: int) -> int:
        """Do them; the exit code."""
        interrupted = True
        try:
            self._send(max_concurrency)
            interrupted = False
        except KeyboardInterrupt:
            return _INTERRUPTED
        finally:
            for line in self._tally.summary():
                err.print(line, markup=False)
            if interrupted:
                rest = self._tally.items - self._tally.before - self._tally.ran
                complain(f"{rest:,} are left: the same command goes on with them")
        return 1 if self._tally.failed or self._tally.failed_before else 0

    def _send(self, max_concurrency: int) -> None:
        run = self._client.batch(self._requests(), max_concurrency=max_concurrency)
        self._tally.sent = run.summary
        with self._meter.showing(), run:
            for outcome in run:
                self._write(outcome)
                self._meter.update()

    def _requests(self) -> Iterator[CompleteRequest]:
        sent = 0
        for item in items(self._lines):
            if self._output.has(item):
                continue
            try:
                request = to_request(item)
            except LineRefused as refusal:
                self._output.append(failed(item.id, item.custom_id, item.number, refusal))
                self._tally.refused += 1
                continue
            self._asked[sent] = replace(item, fields={})
            sent += 1
            yield request

    def _write(self, outcome: BatchOutcome) -> None:
        item = self._asked.pop(outcome.index)
        if outcome.completion is not None:
            created = int(time.time())
            line = completed(item.id, item.custom_id, outcome.completion, created)
        else:
            error = outcome.error
            assert isinstance(error, RuvdError)  # noqa: S101  # the one or the other is there
            line = failed(item.id, item.custom_id, item.number, error)
        self._output.append(line)
