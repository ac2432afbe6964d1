"""What waits for the collector is bounded, whatever the collector does, and goes by OTEL_BSP_*."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest

from ruvd.telemetry.outbox import Outbox, Pace
from ruvd.telemetry.spans import Span, Tracer

SECONDS = 20.0


class Collecting:
    """What exports: keeps what it gets and waits until it may answer."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.came = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fails = False

    def __call__(self, spans: Sequence[Span]) -> bool:
        self.batches.append([span.name for span in spans])
        self.came.set()
        assert self.may_answer.wait(SECONDS)
        if self.fails:
            raise RuntimeError("broken")
        return True


def put(outbox: Outbox, names: Sequence[str]) -> None:
    for name in names:
        outbox.put(Span(Tracer(), name, None))


def test_a_whole_batch_goes_at_once_and_the_rest_at_the_end() -> None:
    collecting = Collecting()
    outbox = Outbox(collecting, Pace(delay_seconds=600, batch=2, capacity=10))
    put(outbox, "ab")
    assert collecting.came.wait(SECONDS)
    put(outbox, "c")
    outbox.close()
    assert collecting.batches == [["a", "b"], ["c"]]


def test_less_than_a_batch_goes_after_the_delay() -> None:
    collecting = Collecting()
    outbox = Outbox(collecting, Pace(delay_seconds=0.01, batch=512, capacity=2048))
    put(outbox, "a")
    assert collecting.came.wait(SECONDS)
    outbox.close()
    assert collecting.batches == [["a"]]


def test_what_does_not_fit_is_dropped_the_oldest_first_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    collecting = Collecting()
    collecting.may_answer.clear()
    outbox = Outbox(collecting, Pace(delay_seconds=600, batch=1, capacity=3))
    with caplog.at_level(logging.WARNING, "ruvd.telemetry"):
        put(outbox, "a")
        assert collecting.came.wait(SECONDS)
        put(outbox, "bcdefg")  # while the collector has answered nothing
        collecting.may_answer.set()
        outbox.close()
    assert [name for batch in collecting.batches for name in batch] == ["a", "e", "f", "g"]
    assert [record.getMessage() for record in caplog.records] == [
        "spans are dropped: more have ended than the collector takes"
    ]


def test_an_export_that_breaks_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    collecting = Collecting()
    collecting.fails = True
    outbox = Outbox(collecting, Pace(delay_seconds=600, batch=1, capacity=3))
    put(outbox, "a")
    assert collecting.came.wait(SECONDS)
    put(outbox, "b")
    outbox.close()
    assert collecting.batches == [["a"], ["b"]]
    assert {record.getMessage() for record in caplog.records} == {"spans could not be exported"}


def test_the_pace_is_what_the_environment_says() -> None:
    assert Pace.chosen({}) == Pace(5.0, 512, 2048)
    assert Pace.chosen({"OTEL_BSP_MAX_QUEUE_SIZE": "20"}) == Pace(5.0, 20, 20)
    chosen = {
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BSP_MAX_QUEUE_SIZE": "20",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
    }
    assert Pace.chosen(chosen) == Pace(0.05, 10, 20)
    for name, value in {
        "OTEL_BSP_SCHEDULE_DELAY": "soon",
        "OTEL_BSP_MAX_QUEUE_SIZE": "0",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5000",
    }.items():
        with pytest.raises(ValueError, match=r"\w"):
            Pace.chosen({name: value})
