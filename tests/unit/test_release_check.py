"""`make release-check` finds what stands in the way of a release, and says what to do about it."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module of the checks, for a repository with a version that may be released."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    module = importlib.import_module("release_check")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ruvd"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2026-11-30\n\n- New.\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "First")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    version: Callable[[Path], str] = module.versions.version
    monkeypatch.setattr(module.versions, "version", lambda: version(tmp_path))
    return module


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_a_version_with_its_section_and_without_a_tag_may_be_released(release: ModuleType) -> None:
    assert release.check_changelog() == "[1.2.3] - 2026-11-30"
    assert release.check_tag() == "to be made after this: v1.2.3 and clients/go/v1.2.3"
    assert release.check_clean()


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        ("## [Unreleased]\n\n- New.\n\n## [1.2.3] - 2026-11-30\n\n- Old.\n",
         "begins with [Unreleased], not with [1.2.3]", "## [1.2.3] - YYYY-MM-DD"),
        ("# Changelog\n", "begins with [nothing]", "## [1.2.3] - YYYY-MM-DD"),
        ("## [1.2.3]\n\n- New.\n", "has no day", "## [1.2.3] - YYYY-MM-DD"),
        ("## [1.2.3] - 2026-11-30\n\n## [1.2.2] - 2026-10-01\n\n- Old.\n",
         "is empty", "say what has changed"),
    ],
)  # fmt: skip
def test_a_changelog_that_is_not_ready_is_named(
    release: ModuleType, tmp_path: Path, text: str, found: str, remedy: str
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(text)
    with pytest.raises(release.Failed) as failed:
        release.check_changelog()
    assert found in str(failed.value)
    assert remedy in failed.value.remedy


def test_a_version_that_has_a_tag_is_not_released_again(
    release: ModuleType, tmp_path: Path
) -> None:
    git(tmp_path, "tag", "clients/go/v1.2.3")
    with pytest.raises(release.Failed, match=r"there is a tag clients/go/v1\.2\.3 already"):
        release.check_tag()


def test_what_is_not_committed_is_named(release: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "forgotten.py").write_text("")
    with pytest.raises(release.Failed, match=r"forgotten\.py"):
        release.check_clean()


def test_generated_pages_that_are_out_of_date_are_named(
    release: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text("docs:\n\t@echo new > page\n")
    (tmp_path / "page").write_text("old\n")
    (tmp_path / "mine").write_text("not committed\n")
    with pytest.raises(release.Failed) as failed:
        release.check_pages()
    assert str(failed.value) == "generated pages were out of date: page"
    assert release.check_pages() == "as `make docs` makes them"


def test_all_checks_run_after_one_that_failed_and_each_says_what_to_do(
    release: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub() -> str:
        return str(release.run("sh", "-c", "echo no such stub; exit 3", remedy="run `make proto`"))

    checks = (("stubs", stub), ("tag", release.check_tag))
    monkeypatch.setattr(release, "QUICK", checks)
    monkeypatch.setattr(release, "SLOW", ())
    assert release.main([]) == 1
    printed = capsys.readouterr().out
    assert "FAILED  stubs: sh -c" in printed
    assert "no such stub\n        TO DO: run `make proto`\n" in printed
    assert "ok      tag: " in printed
    monkeypatch.setattr(release, "QUICK", checks[1:])
    assert release.main([]) == 0
    assert "this commit can be released" in capsys.readouterr().out
