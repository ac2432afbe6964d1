"""The examples in the README run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruvd_client import Client

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_run(
    address: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVD_ADDRESS", address)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    for example in examples:
        exec(compile(example, str(README), "exec"), {})  # noqa: S102  # our own text
    assert client.get_session("alice").exchange_count == 2
