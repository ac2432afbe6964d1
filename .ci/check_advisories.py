"""Checks the pinned packages for known vulnerabilities with pip-audit, and judges its answer.

    python .ci/check_advisories.py [REQUIREMENTS...]

Exit codes: 0 nothing was found, or nothing could be checked, which is said in so many words;
1 a finding that the ignore list does not excuse; 2 the ignore list is wrong.

pip-audit alone is not enough. It succeeds when its service knows none of the packages, as a mirror
without advisories does, and its ignore list has neither reasons nor dates. docs/contributing.md
says what to do about a finding.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IGNORED = ROOT / ".ci" / "ignored-advisories.toml"
REQUIREMENTS = (
    "requirements.txt",
    "requirements-model.txt",
    "requirements-audit.txt",
    "requirements-docs.txt",
    "requirements-openai.txt",
    "requirements-release.txt",
    "clients/python/requirements-docs.txt",
    "clients/frameworks/requirements.txt",
)
SERVICES = ("pypi", "osv")
_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """A known vulnerability of a pinned package."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        """Returns one line."""
        fix = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fix yet"
        return f"{self.package} {self.version}: {', '.join(self.ids)} ({fix})"


@dataclass(frozen=True, slots=True)
class Ignored:
    """An advisory that does not concern ruvd, for a reason, until a day."""

    advisory: str
    package: str
    reason: str
    until: date


class IgnoreListWrong(Exception):
    """The ignore list cannot be used; the message says why."""


def read_ignored(path: Path) -> list[Ignored]:
    """Reads the ignore list. Raises IgnoreListWrong."""
    try:
        entries = tomllib.loads(path.read_text()).get("ignored", [])
        found = [Ignored(**entry) for entry in entries]
    except (OSError, TypeError, tomllib.TOMLDecodeError) as error:
        raise IgnoreListWrong(f"{path}: {error}") from None
    for each in found:
        if not each.reason.strip() or type(each.until) is not date:
            raise IgnoreListWrong(f"{path}: {each.advisory} needs a reason and a date `until`")
    return found


def split(answer: dict[str, Any]) -> tuple[list[Finding], list[str], list[str]]:
    """Returns the findings, the packages that were checked, and those that were not."""
    findings: list[Finding] = []
    checked: list[str] = []
    skipped: list[str] = []
    for each in answer["dependencies"]:
        if "skip_reason" in each:
            skipped.append(each["name"])
            continue
        checked.append(each["name"])
        for vulnerability in each["vulns"]:
            ids = (vulnerability["id"], *vulnerability.get("aliases", ()))
            fixes = tuple(vulnerability.get("fix_versions", ()))
            findings.append(Finding(each["name"], each["version"], ids, fixes))
    return findings, checked, skipped


def judge(
    findings: Iterable[Finding], ignored: Sequence[Ignored], today: date
) -> tuple[list[Finding], list[str]]:
    """Returns the findings that count, and remarks about the ignore list."""
    counting: list[Finding] = []
    remarks: list[str] = []
    used: set[Ignored] = set()
    for finding in findings:
        excuse = next(
            (
                each
                for each in ignored
                if each.advisory in finding.ids and each.package == finding.package
            ),
            None,
        )
        if excuse is None:
            counting.append(finding)
            continue
        used.add(excuse)
        if excuse.until < today:
            counting.append(finding)
            remarks.append(f"{excuse.advisory} was ignored until {excuse.until}: look at it again")
        else:
            remarks.append(f"ignored until {excuse.until}: {finding}: {excuse.reason}")
    remarks += [
        f"{each.advisory} is ignored and was not found: remove it from the list"
        for each in ignored
        if each not in used
    ]
    return counting, remarks


def ask(service: str, requirements: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """Returns pip-audit's answers by an advisory service; None and the cause if one is missing."""
    dependencies: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(merge(Path(each).read_text() for each in requirements)):
            path = Path(folder) / f"requirements-{number}.txt"
            path.write_text(group)
            answer, cause = _ask(service, str(path))
            if answer is None:
                return None, cause
            dependencies += answer["dependencies"]
    return {"dependencies": dependencies, "fixes": []}, ""


def merge(lists: Iterable[str]) -> list[str]:
    """Returns all pins of the lists, in as few lists as possible that have each package once.

    pip-audit refuses a package that is in two of its lists, also with the same version.
    """
    groups: list[dict[str, str]] = []
    for text in lists:
        for block in re.split(r"(?m)^(?=[A-Za-z0-9])", text):
            name, separator, _ = block.partition("==")
            if not separator:
                continue
            pin = block.splitlines()[0]
            same = (group.get(name, "").splitlines()[:1] == [pin] for group in groups)
            if any(same):
                continue
            free = next((group for group in groups if name not in group), None)
            if free is None:
                free = {}
                groups.append(free)
            free[name] = block
    return ["".join(group.values()) for group in groups]


def _ask(service: str, requirements: str) -> tuple[dict[str, Any] | None, str]:
    command = [
        os.environ.get("PIP_AUDIT", "pip-audit"), "--vulnerability-service", service,
        "--requirement", requirements,
        "--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json",
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603  # a program of ours, without a shell
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"exit code {done.returncode}"
    return answer, ""


def main(requirements: Sequence[str]) -> int:
    """Asks one service after the other until one knows the packages; returns the exit code."""
    try:
        ignored = read_ignored(IGNORED)
    except IgnoreListWrong as error:
        print(f"advisories: {error}")
        return 2
    for service in SERVICES:
        answer, cause = ask(service, requirements)
        if answer is None:
            print(f"advisories: {service} cannot be asked: {cause}")
            continue
        findings, checked, skipped = split(answer)
        if not checked:
            print(f"advisories: {service} knows none of the {len(skipped)} packages")
            continue
        counting, remarks = judge(findings, ignored, datetime.now(UTC).date())
        for line in remarks:
            print(f"advisories: {line}")
        if skipped:
            print(f"advisories: NOT CHECKED by {service}: {', '.join(skipped)}")
        for finding in counting:
            print(f"advisories: VULNERABLE: {finding}")
        print(f"advisories: {service} checked {len(checked)} packages: {len(counting)} findings")
        return 1 if counting else 0
    print("advisories: NOT CHECKED: no advisory service can be reached from this machine.")
    print("advisories: This is no failure. Run `make advisories` where one can be reached.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(ROOT / each) for each in REQUIREMENTS]))
