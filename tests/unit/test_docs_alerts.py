"""Each alert has a section that says what to do, and leads there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
PAGE = "docs/alerts.md"
URL = f"https://github.com/ruvd/ruvd/blob/main/{PAGE}#"


def alerts() -> dict[str, dict[str, Any]]:
    """Returns the alerts by their names."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def sections() -> dict[str, str]:
    """Returns the sections of the page by their headings."""
    _, *parts = re.split(r"^## (.+)$", (ROOT / PAGE).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    assert list(sections()) == list(alerts())


def test_a_section_says_how_severe_it_is_what_callers_notice_and_what_to_do() -> None:
    for name, text in sections().items():
        severity = alerts()[name]["labels"]["severity"]
        assert text.strip().startswith(f"**{severity.capitalize()}.**"), name
        assert "**Callers**" in text, name
        assert "\n1. " in text, name


def test_the_runbook_of_an_alert_leads_to_its_section() -> None:
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == URL + name.lower(), name
