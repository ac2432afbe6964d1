"""Log lines have their form and hold no message content, whatever goes wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

import pytest

from ruvd.server import logs
from ruvd.server.log_level import LogLevelControl

SAID = "what a user said"


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("ruvd")
    before = root.handlers, root.level, ours.level
    yield
    root.handlers, root.level, ours.level = before


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_traceback_shows_no_local_variables(
    form: Literal["human", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug", form)

    def fail(prompt: str) -> None:
        raise KeyError(len(prompt))

    try:
        fail(SAID)
    except KeyError:
        logging.getLogger("ruvd.rpc").exception("failed")
    logged = capsys.readouterr().err
    assert "KeyError" in logged
    assert SAID not in logged


def test_a_line_is_json_whatever_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    for odd in ("h\u00e4fen \u2028", "name\udcff", 2**70, {1, 2}, object(), b"bytes", float("inf")):
        logging.getLogger("ruvd.rpc").info("odd", extra={"odd": odd})
        assert json.loads(capsys.readouterr().err)["event"] == "odd"


def test_a_line_for_people_is_one_line_with_all_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "human")
    fields = {"reason": "STOP", "detail": "two words\nand a line", "queue_ms": 0.1}
    logging.getLogger("ruvd.rpc").warning("engine %s", "down", extra=fields)
    (line,) = capsys.readouterr().err.splitlines()
    time, rest = line.split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is UTC
    assert rest == (
        "warning  engine down [ruvd.rpc] reason=STOP detail='two words\\nand a line' queue_ms=0.1"
    )


def test_a_line_has_the_ids_of_the_trace_and_the_span_it_is_written_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    logs.correlate_with(lambda: {"trace_id": "t" * 32, "span_id": "s" * 16})
    try:
        logging.getLogger("ruvd.rpc").info("inside")
    finally:
        logs.correlate_with(dict)
    logging.getLogger("ruvd.rpc").info("outside")
    inside, outside = map(json.loads, capsys.readouterr().err.splitlines())
    assert (inside["trace_id"], inside["span_id"]) == ("t" * 32, "s" * 16)
    assert "trace_id" not in outside


async def test_the_level_goes_to_debug_and_back_and_each_change_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("error", "json")
    level = LogLevelControl("error")
    log = logging.getLogger("ruvd.rpc")
    for _ in range(2):
        log.debug("detail")
        level.toggle_debug()
    log.warning("not important enough")
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in said] == ["log level", "detail", "log level"]
    assert [said[0]["log_level"], said[2]["log_level"]] == ["debug", "error"]
