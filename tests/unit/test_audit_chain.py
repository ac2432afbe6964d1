"""The hash chain of audit files: what is changed is found, and what only crashed is not blamed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from audit_files import (
    FailingDisk,
    event,
    is_clean,
    records,
    verify,
    write_file,
    writer,
)
from hypothesis import example, given
from hypothesis import strategies as st

from ruvd.cli.audit import verify as verify_command
from ruvd.telemetry.audit.chain import Hasher, Position, parse, read_key
from ruvd.telemetry.audit.file_output import AuditFileInUse

COUNT = 6
KEYED = Hasher(b"0123456789abcdef")


@pytest.fixture(params=["plain", "keyed"])
def hasher(request: pytest.FixtureRequest) -> Hasher:
    return KEYED if request.param == "keyed" else Hasher()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    write_file(path, COUNT)
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    write_file(path, COUNT)
    return path.read_bytes()


def check(data: bytes, **options: Any) -> Any:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return verify(Path(file.name), **options)


def test_a_file_that_nobody_touched_is_intact(tmp_path: Path, hasher: Hasher) -> None:
    path = tmp_path / "audit.log"
    write_file(path, COUNT, hasher)
    report = verify(path, hasher=hasher)
    assert is_clean(report)
    assert report.records == COUNT
    assert path.stat().st_mode & 0o777 == 0o600


@given(data=st.data())
def test_a_changed_byte_is_found_wherever_it_is(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each != content[place]))
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    assert not is_clean(check(changed))
    if place < len(content) - 1:  # a record is complete without its line break
        assert not is_clean(check(content[:place] + content[place + 1 :])), "a removed byte"
    if byte != ord("\n") or place == 0 or content[place - 1] != ord("\n"):
        inserted = content[:place] + bytes([byte]) + content[place:]
        assert not is_clean(check(inserted)), "an inserted byte"


@given(data=st.data())
def test_removed_moved_repeated_and_merged_records_are_found_and_named(
    content: bytes, data: st.DataObject
) -> None:
    lines = content.splitlines(keepends=True)
    first = data.draw(st.integers(0, COUNT - 2))
    second = data.draw(st.integers(first + 1, COUNT - 1))

    removed = check(b"".join(lines[:first] + lines[first + 1 :]))
    assert removed.findings
    assert removed.findings[0].line == first + 1
    swapped = list(lines)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    found = check(b"".join(swapped)).findings
    assert found[0].line == first + 1
    assert {each.line for each in found} >= {first + 1, second + 1}
    repeated = check(b"".join(lines[: second + 1] + lines[first:]))
    assert repeated.findings[0].line == second + 2
    merged = check(content.replace(lines[first], lines[first].rstrip(b"\n"), 1))
    assert merged.findings[0].line == first + 1


@given(cut=st.integers(1, COUNT))
def test_records_cut_off_at_the_end_are_found_with_an_anchor_only(content: bytes, cut: int) -> None:
    lines = content.splitlines(keepends=True)
    rest = b"".join(lines[: COUNT - cut])
    last = check(content).last["hash"]
    report = check(rest, anchor=last)
    assert report.findings
    assert "no record has the hash" in report.findings[-1].text
    assert is_clean(check(content, anchor=last))
    if cut < COUNT:
        assert is_clean(check(rest)), "a chain alone cannot show this, as the help says"


@pytest.mark.parametrize("size", [1, 10, 100])
def test_a_record_that_a_crash_cut_is_told_apart_from_a_changed_one(
    file: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: -1 - size])
    report = verify(file)
    assert not report.findings
    assert report.incomplete
    assert report.incomplete.line == COUNT
    assert verify_command([file]) == 3
    assert "as after a crash" in capsys.readouterr().out


def test_the_chain_goes_on_after_a_crash_and_keeps_what_it_left(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])
    restarted = writer(file)
    assert restarted.position.sequence == COUNT - 1
    restarted.write([event(100)])
    restarted.close()
    report = verify(file)
    assert is_clean(report)
    assert report.discarded == 1
    assert report.last is not None
    assert report.last["number"] == 100
    lines = file.read_bytes().split(b"\n")
    for changed in (lines[COUNT - 1][:-1], b"", lines[0][:-9]):
        file.write_bytes(b"\n".join([*lines[: COUNT - 1], changed, *lines[COUNT:]]))
        assert verify(file).findings, "what a crash left cannot be changed afterwards, either"


def test_a_last_record_without_its_line_break_is_complete(file: Path) -> None:
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert is_clean(verify(file))
    restarted = writer(file)
    assert restarted.position.sequence == COUNT
    restarted.write([event(100)])
    restarted.close()
    report = verify(file)
    assert is_clean(report)
    assert (report.records, report.discarded) == (COUNT + 1, 0)


@example(budgets=[131], sizes=[1], crashes=set())  # all but the line break
@given(
    budgets=st.lists(st.integers(0, 700), max_size=12),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    crashes=st.sets(st.integers(0, 8)),
)
def test_no_failure_of_the_disk_breaks_the_chain(
    budgets: list[int], sizes: list[int], crashes: set[int]
) -> None:
    """Every record is written once and in order, whatever part of a write the disk takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.log"
        disk = FailingDisk(budgets)
        made = writer(path, disk=disk)
        number, attempts = 0, 0
        for size in sizes:
            batch = [event(number + each) for each in range(size)]
            number += size
            while batch:
                attempts += 1
                if attempts in crashes:
                    made.close()
                    made = writer(path, disk=disk)
                try:
                    del batch[: made.write(batch)]
                except OSError:
                    continue
        made.close()
        report = verify(path)
        assert is_clean(report)
        numbers = [each["number"] for each in records(path) if "number" in each]
        kept = [each for each in numbers if numbers.count(each) == 1]
        assert kept == list(range(number))


def test_the_chain_goes_on_over_rotated_files_and_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for start in range(3):
        made = writer(path, max_bytes=300, max_files=9)
        for number in range(3):
            made.write([event(10 * start + number)])
        made.close()
    files = sorted(tmp_path.iterdir())
    names = ["audit.log", *(f"audit.log.{number}" for number in range(1, len(files)))]
    assert [each.name for each in files] == names
    assert len(files) > 3
    report = verify(*files)
    assert is_clean(report), report.findings
    assert report.first is not None
    assert report.last is not None
    assert report.last["number"] == 22
    middle = verify(files[0], files[1], files[3])
    assert "are missing" in middle.findings[0].text


def test_files_that_rotation_deleted_are_no_finding_and_others_are(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    made = writer(path, max_bytes=400, max_files=3)
    for number in range(20):
        made.write([event(number)])
    made.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    report = verify(*files)
    assert is_clean(report), report.findings
    assert report.first is not None
    first = report.first["seq"]
    assert first > 1
    without_oldest = verify(*files[:2])
    assert "are missing" in without_oldest.findings[-1].text
    assert is_clean(verify(*files[:2], first_record=10_000))


def test_a_file_that_was_renamed_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log-20260101"
    made = writer(path)
    made.write([event(1)])
    path.rename(moved)
    made.write([event(2)])
    made.close()
    assert [each["number"] for each in records(path)] == [2]
    assert is_clean(verify(moved, path))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoil", ["key", "content"])
def test_a_file_that_cannot_be_continued_is_kept_and_a_new_chain_begins(
    file: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    if spoil == "content":
        file.write_bytes(file.read_bytes().replace(b'"number":5', b'"number":6'))
    before = file.read_bytes()
    hasher = KEYED if spoil == "key" else Hasher()
    with caplog.at_level("ERROR", "ruvd.audit"):
        made = writer(file, hasher, max_files=3)
    assert "begins a new chain" in caplog.text
    made.write([event(1)])
    made.close()
    assert file.with_name("audit.log.1").read_bytes() == before
    assert is_clean(verify(file, hasher=hasher))
    assert verify(file, file.with_name("audit.log.1"), hasher=hasher).findings


def test_without_the_key_nobody_can_make_a_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write_file(path, 3, KEYED)
    last = parse(path.read_bytes().splitlines()[-1])
    assert last
    for forger in (Hasher(), Hasher(b"another key, 16+")):
        line, _ = forger.seal(event(3), Position(last["seq"], last["hash"]))
        forged = path.read_bytes() + line
        assert check(forged, hasher=KEYED).findings[0].line == 4
        assert check(path.read_bytes(), hasher=forger).findings


def test_two_daemons_cannot_write_one_file(file: Path) -> None:
    first = writer(file)
    with pytest.raises(AuditFileInUse, match="in use by another process"):
        writer(file)
    first.close()
    writer(file).close()


def test_a_symbolic_link_is_not_followed(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "link.log"
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic link"):
        writer(link)


def test_a_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("short\n")
    with pytest.raises(ValueError, match="16 to 4096 bytes"):
        read_key(path)
    path.write_text("x" * 16 + "\n")
    assert read_key(path) == b"x" * 16


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{", b"1", b'{"seq":1}', b'{"hash":"a","prev":"b","seq":true}', b"[" * 100_000,
     b'{"hash":"a","prev":"b","seq":' + b"9" * 5000 + b"}", b'{"a":NaN}', b"\xff\xfe", b"\0" * 50,
     b'{"hash":"\\u00e4","prev":"b","seq":1}', b'{"hash":1,"prev":"b","seq":1}'],
)  # fmt: skip
def test_a_line_that_is_no_record_is_a_finding_and_no_failure(content: bytes, line: bytes) -> None:
    assert parse(line) is None
    lines = content.splitlines(keepends=True)
    spoilt = b"".join([*lines[:2], line + b"\n", *lines[2:]])
    assert [each.line for each in check(spoilt).findings] == [3]
    assert len(check(b"".join(lines) + 100 * (line + b"\n")).findings) == 20


def test_restarts_on_standard_output_are_allowed_if_asked_for(content: bytes) -> None:
    assert "a new chain begins" in check(content * 2).findings[0].text
    assert is_clean(check(content * 2, restarts=True))


def test_the_command_prints_the_last_hash_and_the_places(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verify_command([file]) == 0
    printed = capsys.readouterr().out
    assert records(file)[-1]["hash"] in printed
    assert "6 records, 1 to 6" in printed
    file.write_bytes(file.read_bytes().replace(b'"number":2', b'"number":3'))
    assert verify_command([file]) == 1
    printed = capsys.readouterr().out
    assert f"{file}:3: record 3 was changed" in printed
    assert "ALTERED" in printed
    assert verify_command([tmp_path / "missing"]) == 2
    (tmp_path / "empty").touch()
    assert verify_command([tmp_path / "empty"]) == 1


def test_rotation_that_is_not_allowed_does_not_stop_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.log"
    made = writer(path, max_bytes=1)
    made.write([event(1)])
    (tmp_path / "audit.log.1").mkdir()
    (tmp_path / "audit.log.1" / "in-the-way").touch()
    with caplog.at_level("ERROR", "ruvd.audit"):
        for number in (2, 3):
            made.write([event(number)])
    made.close()
    assert caplog.text.count("cannot be rotated") == 1
    assert [each["number"] for each in records(path)] == [1, 2, 3]
    assert is_clean(verify(path))
