"""CI's check for known vulnerabilities: a finding fails it, and what was not checked is said.

A program that prints canned answers stands for pip-audit, whose services need the network.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TODAY = datetime.now(UTC).date()
VULNERABLE = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-1", "aliases": ["GHSA-1"], "fix_versions": ["3.1"], "description": ""}],
}
SOUND = {"name": "idna", "version": "3.20", "vulns": []}
UNKNOWN = {"name": "idna", "skip_reason": "not found"}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "check_advisories", ROOT / ".ci" / "check_advisories.py"
    )
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "check_advisories", module)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that runs the check with the answers of services and an ignore list."""

    def run(answers: dict[str, Any], ignored: str = "") -> int:
        folder = tmp_path / "answers"
        folder.mkdir()
        for service, dependencies in answers.items():
            (folder / service).write_text(json.dumps({"dependencies": dependencies, "fixes": []}))
        program = tmp_path / "pip-audit"
        program.write_text(
            '#!/bin/sh\ncat "${0%/*}/answers/$2" 2>/dev/null || { echo "no network" >&2; exit 1; }'
        )
        program.chmod(0o700)
        monkeypatch.setenv("PIP_AUDIT", str(program))
        (tmp_path / "ignored.toml").write_text(ignored)
        monkeypatch.setattr(check, "IGNORED", tmp_path / "ignored.toml")
        code: int = check.main(["requirements.txt"])
        return code

    return run


def entry(until: date, advisory: str = "GHSA-1", reason: str = "Not used.") -> str:
    return (
        f'[[ignored]]\nadvisory = "{advisory}"\npackage = "jinja2"\n'
        f'reason = "{reason}"\nuntil = {until}\n'
    )


def test_a_finding_fails_and_is_named(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"pypi": [SOUND, VULNERABLE]}) == 1
    printed = capsys.readouterr().out
    assert "VULNERABLE: jinja2 2.4.1: PYSEC-1, GHSA-1 (fixed in 3.1)" in printed


def test_sound_packages_pass(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"pypi": [SOUND]}) == 0
    assert "pypi checked 1 packages: 0 findings" in capsys.readouterr().out


def test_a_service_that_knows_nothing_has_checked_nothing(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({"pypi": [UNKNOWN]}) == 0
    printed = capsys.readouterr().out
    assert "pypi knows none of the 1 packages" in printed
    assert "NOT CHECKED: no advisory service can be reached" in printed


def test_the_second_service_is_asked_if_the_first_knows_nothing(run: Any) -> None:
    assert run({"pypi": [UNKNOWN], "osv": [VULNERABLE]}) == 1


def test_without_a_network_the_check_says_so_and_does_not_fail(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({}) == 0
    printed = capsys.readouterr().out
    assert "osv cannot be asked: no network" in printed
    assert "This is no failure" in printed


def test_every_list_of_pins_is_checked(check: ModuleType) -> None:
    everywhere = ("requirements*.txt", "clients/*/requirements*.txt")
    lists = {str(path.relative_to(ROOT)) for name in everywhere for path in ROOT.glob(name)}
    assert set(check.REQUIREMENTS) == lists


def test_a_package_of_two_lists_is_asked_for_once(check: ModuleType) -> None:
    one = "# a comment\na==1 \\\n    --hash=sha256:0\nb==1 \\\n    --hash=sha256:1\n"
    two = "b==1 \\\n    --hash=sha256:1\na==2 \\\n    --hash=sha256:2\nc==1 ; extra\n"
    assert check.merge([one, two]) == [
        "a==1 \\\n    --hash=sha256:0\nb==1 \\\n    --hash=sha256:1\nc==1 ; extra\n",
        "a==2 \\\n    --hash=sha256:2\n",
    ]


def test_packages_that_a_service_does_not_know_are_named(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({"pypi": [UNKNOWN, {**SOUND, "name": "rich"}]}) == 0
    assert "NOT CHECKED by pypi: idna" in capsys.readouterr().out


def test_an_advisory_is_ignored_with_a_reason_until_its_day(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({"pypi": [VULNERABLE]}, entry(TODAY)) == 0
    assert "Not used." in capsys.readouterr().out


def test_after_its_day_an_ignored_advisory_counts_again(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({"pypi": [VULNERABLE]}, entry(TODAY - timedelta(days=1))) == 1
    assert "look at it again" in capsys.readouterr().out


def test_an_advisory_is_ignored_for_its_package_only(run: Any) -> None:
    other = {**VULNERABLE, "name": "markupsafe"}
    assert run({"pypi": [other]}, entry(TODAY)) == 1


def test_an_entry_that_excuses_nothing_is_reported(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({"pypi": [SOUND]}, entry(TODAY)) == 0
    assert "GHSA-1 is ignored and was not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ignored",
    [
        entry(TODAY, reason=" "),
        '[[ignored]]\nadvisory = "GHSA-1"\n',
        '[[ignored]]\nadvisory="A"\npackage="p"\nreason="r"\nuntil="soon"\n',
        "not toml",
    ],
)
def test_an_ignore_list_without_reason_or_date_is_refused(run: Any, ignored: str) -> None:
    assert run({"pypi": [SOUND]}, ignored) == 2


def test_the_projects_own_list_can_be_read(check: ModuleType) -> None:
    assert isinstance(check.read_ignored(check.IGNORED), list)
    assert all((ROOT / each).is_file() for each in check.REQUIREMENTS)
