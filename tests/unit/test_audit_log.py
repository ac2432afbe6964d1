"""The queue of the audit log: nothing waits for it, it is bounded, and every loss is counted."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from audit_files import PLAIN, FailingDisk, event, is_clean, records, verify

from ruvd.telemetry.audit import log, refusals
from ruvd.telemetry.audit.chain_writer import ChainWriter
from ruvd.telemetry.audit.file_output import FileOutput
from ruvd.telemetry.audit.log import AuditLog
from ruvd.telemetry.audit.outputs import StandardOutput


class FullDisk(FailingDisk):
    """A disk that is full until `has_room`."""

    def __init__(self) -> None:
        self.has_room = False

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.has_room:
            raise OSError(errno.ENOSPC, "no space left on device")
        return os.write(descriptor, data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@asynccontextmanager
async def running(
    path: Path, disk: FailingDisk | None = None, on_lost: Callable[[], None] = lambda: None
) -> AsyncIterator[AuditLog]:
    """Yields a log that is written in the background, and closes it."""
    write = disk.write if disk else os.write
    output = FileOutput(path, PLAIN, write=write)
    audit = AuditLog(ChainWriter(output, PLAIN), on_lost)
    await asyncio.to_thread(audit.open)
    task = asyncio.create_task(audit.run())
    try:
        yield audit
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await audit.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # a thread writes the file
            await asyncio.sleep(0.02)


async def test_records_are_written_in_order_with_utc_times(path: Path) -> None:
    async with running(path) as audit:
        for number in range(1000):
            audit.add(event(number))
        await until(lambda: len(records(path)) == 1000)
        audit.add(event(1000))
    found = records(path)
    assert [each["number"] for each in found] == list(range(1001))
    assert all(each["time"].endswith("+00:00") for each in found)
    assert is_clean(verify(path))


async def test_records_wait_while_the_disk_is_full(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk()
    with caplog.at_level("INFO", "ruvd.audit"):
        async with running(path, disk) as audit:
            audit.add(event(1))
            await until(lambda: "cannot be written" in caplog.text)
            audit.add(event(2))
            disk.has_room = True
            await until(lambda: len(records(path)) == 2)
    assert "written again" in caplog.text
    assert [each["number"] for each in records(path)] == [1, 2]


async def test_what_does_not_fit_the_queue_is_counted_and_the_gap_is_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_QUEUED", 10)
    disk, lost = FullDisk(), list[int]()
    async with running(path, disk, lambda: lost.append(1)) as audit:
        for number in range(50):
            audit.add(event(number))
        assert len(lost) == 40
        disk.has_room = True
        await until(lambda: any(each["event"] == "records_lost" for each in records(path)))
        audit.add(event(99))
    found = records(path)
    numbers = [each.get("number") for each in found]
    assert numbers == [*range(10), None, 99]
    assert found[10]["count"] == 40
    report = verify(path)
    assert is_clean(report)
    assert report.lost == 40


async def test_a_log_that_is_closed_on_a_full_disk_says_what_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ruvd.audit"):
        async with running(path, FullDisk()) as audit:
            for number in range(5):
                audit.add(event(number))
    (line,) = [each for each in caplog.records if each.msg == "records of the audit log are lost"]
    assert line.__dict__["records"] == 5
    (closed,) = [each for each in caplog.records if each.msg == "audit log closed"]
    assert closed.__dict__["last_hash"] == "start"


async def test_refusals_are_bounded_and_the_others_are_counted(path: Path) -> None:
    kinds = [{"code": "UNAUTHENTICATED", "reason": "R", "detail": str(n)} for n in range(200)]
    async with running(path) as audit:
        for _ in range(100):
            for kind in kinds[:2]:
                audit.add_refusal({"event": "call", **kind})
        for kind in kinds:
            audit.add_refusal({"event": "call", **kind})
    found = records(path)
    calls = [each for each in found if each["event"] == "call"]
    more = [each for each in found if each["event"] == "more_refusals"]
    assert len(calls) == 30
    assert len(more) <= 101
    assert sum(each["count"] for each in more) + len(calls) == 400
    counts = {each["detail"]: each["count"] for each in more}
    assert counts["0"] == 91
    assert counts["other kinds"] == 90  # of 200 kinds, 10 had records and 100 have counts


async def test_refusals_are_counted_for_each_tenant(path: Path) -> None:
    refusal = {"event": "call", "code": "RESOURCE_EXHAUSTED", "reason": "QUOTA_EXCEEDED"}
    async with running(path) as audit:
        for tenant in ("ann", "bob"):
            for _ in range(50):
                audit.add_refusal({**refusal, "tenant": tenant, "identity": f"{tenant}'s token"})
    more = {each["tenant"]: each for each in records(path) if each["event"] == "more_refusals"}
    assert {tenant: each["count"] for tenant, each in more.items()} == {"ann": 40, "bob": 40}
    assert more["ann"]["identity"] == "ann's token"


async def test_a_minute_later_refusals_are_recorded_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_WINDOW_SECONDS", 0.2)
    refusal = {"event": "call", "code": "UNAUTHENTICATED", "reason": "R", "detail": "wrong"}
    async with running(path) as audit:
        for _ in range(15):
            audit.add_refusal(refusal)
        await until(lambda: any(each["event"] == "more_refusals" for each in records(path)))
        audit.add_refusal(refusal)
        await until(lambda: len(records(path)) == 12)
    assert [each["event"] for each in records(path)][-2:] == ["more_refusals", "call"]


async def test_standard_output_that_nobody_reads_does_not_block() -> None:
    reader, writer = os.pipe()
    try:
        chained = ChainWriter(StandardOutput(writer), PLAIN)
        batch = [event(number) for number in range(3000)]
        left = len(batch)
        with pytest.raises(TimeoutError):
            while left:
                left -= await asyncio.to_thread(chained.write, batch[-left:])
        assert 0 < left < len(batch)
        taken = os.read(reader, 1 << 20)
        while left:
            left -= await asyncio.to_thread(chained.write, batch[-left:])
            taken += os.read(reader, 1 << 20)
    finally:
        os.close(writer)
        os.close(reader)
    numbers = [line for line in taken.splitlines() if b'"number"' in line and line.endswith(b"}")]
    assert len(numbers) == 3000
    assert chained.position.sequence >= 3000
