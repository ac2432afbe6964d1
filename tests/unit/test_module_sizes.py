"""The size of modules: one that grows beyond the bound has a second responsibility to give away."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 300
GENERATED = ("ruvd/v1/", "ruvd/admin/")


def test_no_module_of_the_daemon_has_more_than_300_lines() -> None:
    paths = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "ruvd").rglob("*.py")}
    lines = {
        name: len(path.read_text().splitlines())
        for name, path in sorted(paths.items())
        if not name.startswith(GENERATED)
    }
    long = [f"{name}: {count} lines" for name, count in lines.items() if count > MAX_LINES]
    assert lines
    assert not long, "split by responsibility:\n" + "\n".join(long)
