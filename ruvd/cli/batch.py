"""`ruvd batch`: answers a file in OpenAI's batch format into another, and can be continued.

The out file is the only state: each outcome is appended at once, and a run skips items that have a
line. A failed item keeps its line and is not run again, unless --retry-failed is given.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated

from cyclopts import Parameter, validators
from ruvd_client import BatchOutcome, Client, RuvdError
from ruvd_client.v1.session_service_pb2 import CompleteRequest

from ruvd.cli.address import Address, default_address
from ruvd.cli.batch_files import FilesRefused, OutcomeFile, items, opened_input, plan
from ruvd.cli.batch_lines import Item, completed, failed, to_request
from ruvd.cli.batch_progress import ProgressDisplay, Tally
from ruvd.cli.console import err, fail, print_error
from ruvd.cli.openai_messages import LineRefused
from ruvd.cli.terminal import File, connected

_USAGE, _INTERRUPTED = 2, 130


def batch(
    file: Annotated[File, Parameter(help="File with an item on each line; - is stdin.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="File to which the outcomes are appended as they come.")],
    max_concurrency: Annotated[
        int | None,
        Parameter(
            validator=validators.Number(gte=1),
            help="Most items at the same time. Default: the daemon's batch_concurrency.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, Parameter(negative=(), help="Run items again that failed in an earlier run.")
    ] = False,
    address: Address = default_address,
) -> int:
    """Runs `ruvd batch`; returns its exit code."""
    try:
        with opened_input(file, out) as lines, OutcomeFile(out) as output:
            if retry_failed:
                output.remove_failed()
            work = plan(lines, output)
            tally = Tally(work.items, work.done, work.failed)
            with connected(address) as client:
                return _Run(client, lines, output, tally).run(max_concurrency or 0)
    except FilesRefused as refusal:
        print_error(str(refusal))
        return _USAGE
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}")


class _Run:
    """One run over the items that have no outcome yet."""

    def __init__(self, client: Client, lines: IO[bytes], output: OutcomeFile, tally: Tally) -> None:
        self._client = client
        self._lines = lines
        self._output = output
        self._tally = tally
        self._display = ProgressDisplay(tally)
        self._sent_items: dict[int, Item] = {}

    def run(self, max_concurrency: int) -> int:
        """Runs the items; returns the exit code."""
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
                rest = self._tally.items - self._tally.done_before - self._tally.ran
                print_error(f"items left: {rest:,}; run the same command again to continue")
        return 1 if self._tally.failed or self._tally.failed_before else 0

    def _send(self, max_concurrency: int) -> None:
        run = self._client.batch(self._requests(), max_concurrency=max_concurrency)
        self._tally.sent = run.summary
        with self._display.shown(), run:
            for outcome in run:
                self._write(outcome)
                self._display.update()

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
            self._sent_items[sent] = replace(item, fields={})
            sent += 1
            yield request

    def _write(self, outcome: BatchOutcome) -> None:
        item = self._sent_items.pop(outcome.index)
        if outcome.completion is not None:
            created = int(time.time())
            line = completed(item.id, item.custom_id, outcome.completion, created)
        else:
            error = outcome.error
            assert isinstance(error, RuvdError)  # noqa: S101  # an outcome has one of the two
            line = failed(item.id, item.custom_id, item.number, error)
        self._output.append(line)
