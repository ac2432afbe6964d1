"""Logs hold no message content, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from ruvd import logs

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
