"""What the README says of the settings is what they are."""

from __future__ import annotations

from pathlib import Path

from ruvd.config.loader import Settings

README = Path(__file__).parents[2] / "README.md"
BEGIN = "keeps this table true -->\n"
END = "<!-- end of settings -->"


def table() -> str:
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = ", ".join(default) if isinstance(default, list) else str(default).lower()
        shown = f"`{text}`" if text and default not in (None, []) else ""
        lines.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def test_the_readmes_table_of_settings_is_true() -> None:
    text = README.read_text()
    found = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert found == table(), f"put this between the marks in README.md:\n\n{table()}"
