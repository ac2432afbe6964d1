"""The form of docstrings, so that each can be read by itself in an editor or a generated page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("ruvd", "clients/python", "bench")
_QUESTION = re.compile(r"(What|How|Which|Who|Whom|Whose|Where|Why)\b")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of every docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("source", SOURCES)
def test_a_docstring_says_what_a_thing_is_or_does_and_asks_nothing(source: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in sorted((ROOT / source).rglob("*.py"))
        if "v1" not in path.parts and "node_modules" not in path.parts
        for line, text in docstrings(path)
        if _QUESTION.match(text)
    ]
    assert not wrong, "\n".join(wrong)
