"""`ruvd audit verify`: checks the hash chain of audit files. It calls no daemon."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.console import out, print_error
from ruvd.telemetry.audit.chain import Hasher, read_key
from ruvd.telemetry.audit.verification import Report, Verifier

_ALTERED = 1
_USAGE = 2
_INCOMPLETE = 3


def verify(
    files: Annotated[
        list[Path], Parameter(help="The audit file and those that were rotated, in any order.")
    ],
    /,
    *,
    key_file: Annotated[
        Path | None, Parameter(help="The daemon's audit_key_file, if it has one.")
    ] = None,
    anchor: Annotated[
        str, Parameter(help="A hash that was noted earlier, and must be in the chain.")
    ] = "",
    first_record: Annotated[
        int, Parameter(help="Number of the first record, if earlier ones are archived elsewhere.")
    ] = 1,
    restarts: Annotated[
        bool,
        Parameter(negative=(), help="Let records begin again at 1: for lines from stdout."),
    ] = False,
) -> int:
    """Runs `ruvd audit verify`; returns its exit code."""
    try:
        hasher = Hasher(read_key(key_file))
        verifier = Verifier(hasher, anchor=anchor, first_record=first_record, restarts=restarts)
        report = verifier.verify(files)
    except (OSError, ValueError) as error:
        print_error(str(error))
        return _USAGE
    _print(report)
    if report.findings:
        return _ALTERED
    return _INCOMPLETE if report.incomplete else 0


def _print(report: Report) -> None:
    for finding in report.findings:
        _line(f"{finding.file}:{finding.line}: {finding.text}")
    if report.more_findings:
        _line(f"and {report.more_findings} more findings")
    if report.incomplete:
        place = f"{report.incomplete.file}:{report.incomplete.line}"
        _line(f"{place}: {report.incomplete.text}, as after a crash")
    first, last = report.first, report.last
    if first and last:
        times = f"{first.get('time', '?')} to {last.get('time', '?')}"
        _line(f"{report.records:,} records, {first['seq']} to {last['seq']}, {times}")
    if report.lost:
        _line(f"{report.lost:,} records were lost while they could not be written")
    if report.discarded:
        _line(
            f"{report.discarded:,} incomplete records, of crashes or a full disk, were passed over"
        )
    if report.findings:
        _line("ALTERED: the records are not those that the daemon wrote")
    elif last:
        _line(f"intact up to the last hash {last['hash']}")
        _line("keep that hash elsewhere: only with it a cut at the end can be found (--anchor)")


def _line(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
