"""The log lines about what a replica does with the sessions of others."""

from __future__ import annotations

import logging

import pytest

from ruvd.core.ports.events import (
    Event,
    ReplicaJoined,
    SessionTakenOver,
    UncertainWriteEnded,
    WriteFenced,
)
from ruvd.server import log_observer


@pytest.mark.parametrize(
    ("event", "level", "text", "fields"),
    [
        (
            SessionTakenOver("s", "x"),
            logging.WARNING,
            "session taken over",
            {"former_replica": "x"},
        ),
        (WriteFenced("s", "taken"), logging.WARNING, "write fenced", {"reason": "taken"}),
        (WriteFenced("s", "created"), logging.WARNING, "write fenced", {"reason": "created"}),
        (WriteFenced("s", "in_use"), logging.DEBUG, "write fenced", {"reason": "in_use"}),
        (WriteFenced("s", "changed"), logging.DEBUG, "write fenced", {"reason": "changed"}),
        (UncertainWriteEnded("s", "written"), logging.INFO, "uncertain write", {}),
        (UncertainWriteEnded("s", "repeated"), logging.INFO, "uncertain write", {}),
        (
            UncertainWriteEnded("s", "unknown"),
            logging.WARNING,
            "uncertain write",
            {"outcome": "unknown"},
        ),
    ],
)
def test_an_operator_is_warned_of_what_should_not_happen(
    caplog: pytest.LogCaptureFixture,
    event: Event,
    level: int,
    text: str,
    fields: dict[str, str],
) -> None:
    with caplog.at_level(logging.DEBUG, "ruvd"):
        log_observer.observe(event)
    (record,) = caplog.records
    assert (record.levelno, record.message) == (level, text)
    assert fields | {"session_id": "s"} == {
        name: getattr(record, name) for name in [*fields, "session_id"]
    }


def test_a_replica_says_at_the_start_by_which_id_others_name_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "ruvd"):
        log_observer.observe(ReplicaJoined("x"))
    (record,) = caplog.records
    assert (record.message, vars(record)["replica"]) == ("replica joined", "x")
