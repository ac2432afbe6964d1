"""The check of audit files: whether all records of the chain are there, unchanged and in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ruvd.telemetry.audit.chain import (
    START,
    TAIL_DISCARDED,
    Hasher,
    Position,
    declares,
    parse,
    position_of,
)

_MAX_LINE_BYTES = 1 << 20
_MAX_FINDINGS = 20
_MAX_JUNK = 16


class Finding(NamedTuple):
    """Something wrong: the file, the number of the line, and a sentence about it."""

    file: Path
    line: int
    text: str


@dataclass(slots=True)
class Report:
    """The result of a check. The records are intact if there are no findings.

    `incomplete` is the place of a record at the very end that was not written to its end.
    """

    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    records: int = 0
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    lost: int = 0
    discarded: int = 0
    incomplete: Finding | None = None
    has_anchor: bool = False

    def find(self, file: Path, line: int, text: str) -> None:
        """Adds a finding; of many, only the number is kept."""
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(Finding(file, line, text))
        else:
            self.more_findings += 1


class _Line(NamedTuple):
    file: Path
    number: int
    data: bytes
    is_ended: bool


class Verifier:
    """Checks the files of one chain.

    `anchor` is a hash that must be in the chain. The chain must begin with the record
    `first_record`, unless a record says that the files before it were deleted. With `restarts`
    records may begin again at 1, as they do on standard output.
    """

    def __init__(
        self, hasher: Hasher, *, anchor: str = "", first_record: int = 1, restarts: bool = False
    ) -> None:
        self._hasher = hasher
        self._anchor = anchor
        self._first_record = first_record
        self._restarts = restarts
        self._report = Report()
        self._after: Position | None = None
        self._deleted_through = 0
        self._junk: list[_Line] = []

    def verify(self, files: Sequence[Path]) -> Report:
        """Checks files, which may be given in any order. Raises OSError."""
        report = self._report
        in_order = sorted(files, key=_first_sequence)
        line = None
        for line in _lines(in_order):
            self._check(line)
        # A record without its line break is complete: the next write adds that.
        is_cut = bool(line and not line.is_ended and self._junk)
        if is_cut and len(self._junk) == 1:
            self._junk.clear()  # the line is reported below
        self._end_junk()
        if line and is_cut and not report.findings:
            text = "the last record was not written to its end"
            report.incomplete = Finding(line.file, line.number, text)
        if report.first is None:
            if not report.findings:
                report.find(in_order[0], 1, "there is no record")
        elif report.first["seq"] > max(self._first_record, self._deleted_through + 1):
            text = f"the records before number {report.first['seq']} are missing"
            report.findings.insert(0, Finding(in_order[0], 1, text))
        if self._anchor and not report.has_anchor:
            report.find(in_order[-1], 1, f"no record has the hash {self._anchor}")
        return report

    def _check(self, line: _Line) -> None:
        record = parse(line.data)
        if record is None:
            self._junk.append(line)
            if len(self._junk) > _MAX_JUNK:
                self._end_junk()
            return
        if not self._hasher.is_valid(record):
            self._end_junk()
            self._report.find(
                line.file, line.number, f"record {record['seq']} was changed, or has another key"
            )
            self._after = position_of(record)
            return
        is_declared = self._junk and record.get("event") == TAIL_DISCARDED
        if is_declared and declares(record, [each.data for each in self._junk]):
            self._junk.clear()
            self._report.discarded += 1
        self._end_junk()
        self._follow(line, record)

    def _follow(self, line: _Line, record: dict[str, Any]) -> None:
        report, after = self._report, self._after
        sequence, previous = record["seq"], record["prev"]
        begins = sequence == 1 and previous == START
        if after is None:
            is_next = begins or (sequence > 1 and previous != START)
        else:
            is_next = sequence == after.sequence + 1 and previous == after.last_hash
            is_next = is_next or (begins and self._restarts)
        if not is_next:
            text = f"record {sequence} does not follow the one before it"
            if begins:
                text = "a new chain begins here"
            elif after and sequence > after.sequence + 1:
                text = f"records {after.sequence + 1} to {sequence - 1} are missing"
            report.find(line.file, line.number, text)
        self._after = position_of(record)
        report.records += 1
        report.first = report.first or record
        report.last = record
        report.has_anchor = report.has_anchor or record["hash"] == self._anchor
        if record.get("event") == "records_lost":
            report.lost += int(record.get("count", 0))
        if record.get("event") == "file_deleted":
            self._deleted_through = max(self._deleted_through, int(record.get("through", 0)))

    def _end_junk(self) -> None:
        """Reports lines that are no records, and that no record describes as incomplete."""
        for line in self._junk:
            self._report.find(line.file, line.number, "is no record: changed, cut or inserted")
        self._junk.clear()


def _lines(files: Sequence[Path]) -> Iterator[_Line]:
    for path in files:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(_MAX_LINE_BYTES):
                number += 1
                yield _Line(path, number, data.removesuffix(b"\n"), data.endswith(b"\n"))


def _first_sequence(path: Path) -> float:
    """Returns the number of the first record in a file; infinity without one."""
    for line in _lines([path]):
        if record := parse(line.data):
            return float(record["seq"])
    return float("inf")
