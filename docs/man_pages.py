#!/usr/bin/env python3
"""Writes the man pages of a folder from the help of the commands; `make docs` writes those of man/.

There is a page for `ruvd` and one for each of its commands, with the command's own commands. The
panels are those of `--help`: cyclopts hands them to a formatter, which keeps them here.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions

from ruvd.cli.commands import app

_ENVIRONMENT = (
    ("RUVD_ADDRESS", "The address of the daemon for the commands that call one."),
    ("RUVD_TOKEN, RUVD_TOKEN_FILE", "The bearer token of these calls, or the file that has it."),
    ("RUVD_TLS_CA_FILE, RUVD_TLS_CLIENT_CERT_FILE, RUVD_TLS_CLIENT_KEY_FILE, RUVD_TLS_SERVER_NAME",
     "The files and the server's name for calls over TLS."),
    ("RUVD_ADMIN_ADDRESS", "The admin socket for ruvd drain and ruvd admin."),
    ("RUVD_CONFIG", "The settings file. Default: ruvd.toml in the working directory."),
    ("RUVD_*", "The settings of the daemon, as ruvd\\-serve(1) names them."),
)  # fmt: skip
_EXIT = (
    ("0", "The command succeeded."),
    ("1", "It failed."),
    ("2", "Its usage or the settings are wrong."),
    ("130", "It was interrupted."),
)
# cyclopts' names of its own groups.
_TITLES = {"Parameters": "Options"}
_HOMEPAGE = "https://github.com/ruvd/ruvd"


@dataclass
class Help:
    """The help of a command: its usage and its panels."""

    usage: str = ""
    panels: list[HelpPanel] = field(default_factory=list)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Keeps the usage. A part of cyclopts' protocol for formatters, like the next two."""
        self.usage = str(usage).strip().removeprefix("Usage: ")

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Keeps nothing: the description is the command's own text."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Keeps a panel."""
        self.panels.append(panel)

    def options(self) -> dict[str, list[HelpEntry]]:
        """Returns the arguments and flags by the titles of their panels, but for --help."""
        return {
            _TITLES.get(title := str(panel.title), title): entries
            for panel in self.panels
            if panel.format == "parameter"
            and (entries := [each for each in panel.entries if "--help" not in each.names])
        }


def help_of(path: tuple[str, ...]) -> Help:
    """Returns the help of a command, such as `("sessions", "list")`."""
    found = Help()
    app.help_formatter = found
    app.help_print(path, console=Console(file=StringIO()))
    return found


def commands(parent: App) -> dict[str, App]:
    """Returns an app's commands by their names."""
    return {name: parent[name] for name in parent if not name.startswith("-")}


def bold(text: str) -> str:
    """Returns a literal text in bold, whose hyphens can be copied into a shell."""
    return f"\\fB{literal(text)}\\fR"


def literal(text: str) -> str:
    """Returns a text of which troff changes nothing."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def prose(text: str) -> str:
    """Returns a paragraph: what is in backticks is bold, and flags keep their hyphens."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    quoted = [
        bold(part) if number % 2 else re.sub(r"(?<!\w)--?(?=\w)", _flag, part.replace("\\", "\\e"))
        for number, part in enumerate(parts)
    ]
    return "\n".join(guarded(line) for line in textwrap.wrap("".join(quoted), 78, **_WRAP))


_WRAP: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def _flag(match: re.Match[str]) -> str:
    return match[0].replace("-", "\\-")


def guarded(line: str) -> str:
    """Returns a line that troff does not read as a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


def description(text: str) -> Iterator[str]:
    """Yields a help text's paragraphs and its indented examples."""
    for number, block in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if block.startswith("    "):
            yield from (".RS 4", ".nf", *map(guarded, literal(textwrap.dedent(block)).splitlines()))
            yield from (".fi", ".RE")
        else:
            yield prose(block)


def plain(renderable: Any) -> str:
    """Returns what rich prints for it, in one line."""
    console = Console(file=StringIO(), width=10_000, color_system=None)
    with console.capture() as printed:
        console.print(renderable)
    return " ".join(printed.get().split())


def entry(each: HelpEntry) -> Iterator[str]:
    """Yields an argument or a flag with its description."""
    labels = [bold(each.positional_label)] if each.positional_label else []
    labels += [bold(name) for name in each.all_options]
    metavar = each.metavar if each.metavar and not each.positional_label else ""
    yield f".TP\n{', '.join(labels)}" + (f" \\fI{literal(metavar)}\\fR" if metavar else "")
    text = plain(each.description)
    if each.choices:
        text += f" One of: {', '.join(each.choices)}."
    if each.default not in (None, "False", '""'):
        text += f" Default: {each.default}."
    if each.required:
        text += " Required."
    yield prose(text) if text else "\\&"


def options(found: Help, own: str, left_out: Help | None = None) -> Iterator[str]:
    """Yields the panels of arguments and flags, but for those that `left_out` has, too."""
    shared = left_out.options() if left_out else {}
    panels = found.options()
    kept = {
        title: entries
        for title, entries in panels.items()
        if [each.names for each in entries] != [each.names for each in shared.get(title, [])]
    }
    for title, entries in kept.items():
        yield f'.{own} "{title.upper() if own == "SH" else title}"'
        for each in entries:
            yield from entry(each)
    if len(kept) < len(panels):
        yield f'.{own} "SETTINGS"'
        yield "Every setting of \\fBruvd\\-serve\\fR(1) is also a flag of this command."


def head(name: str, summary: str, release: str) -> Iterator[str]:
    """Yields the beginning of a page."""
    yield '.\\" Generated by docs/man_pages.py: run `make docs` after changing a command.'
    yield f'.TH "{literal(name.upper())}" 1 "" "ruvd {release}" "ruvd"'
    yield from (".SH NAME", f"{literal(name)} \\- {summary}")


def main_page(release: str) -> str:
    """Returns the page of `ruvd` itself."""
    summary, _, more = app.help.partition("\n\n")
    lines = [*head("ruvd", prose(lower(summary)), release), ".SH SYNOPSIS"]
    lines += [f"{bold('ruvd')} \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]", ".SH DESCRIPTION"]
    lines += [prose(summary), ".PP", *description(more), ".SH COMMANDS"]
    for name, command in commands(app).items():
        first = command.help.strip().partition("\n\n")[0]
        lines += [f".TP\n\\fBruvd\\-{literal(name)}\\fR(1)", prose(first)]
    for title, rows in (("ENVIRONMENT", _ENVIRONMENT), ("EXIT STATUS", _EXIT)):
        lines.append(f".SH {title}")
        for name, text in rows:
            lines += [f".TP\n{bold(name)}", text]
    lines += [".PP", "Each command's page says what else its exit codes mean."]
    lines += [".SH SEE ALSO", _HOMEPAGE]
    return "\n".join(lines) + "\n"


def lower(summary: str) -> str:
    """Returns the summary as whatis(1) shows it: a phrase without a capital and a full stop."""
    return (summary[:1].lower() + summary[1:]).strip().removesuffix(".")


def command_page(name: str, release: str) -> str:
    """Returns the page of a command, with the commands that it has."""
    command, found = app[name], help_of((name,))
    summary, _, more = command.help.strip().partition("\n\n")
    lines = [*head(f"ruvd-{name}", prose(lower(summary)), release), ".SH SYNOPSIS"]
    parts = commands(command)
    lines.append("\n.br\n".join(bold(each) for each in usages(name, found, parts)))
    lines += [".SH DESCRIPTION", prose(summary)]
    if more:
        lines += [".PP", *description(more)]
    lines += options(found, "SH", None if name == "serve" else help_of(("serve",)))
    for part, subcommand in parts.items():
        lines += [f".SH RUVD {name.upper()} {literal(part.upper())}"]
        lines += description(subcommand.help.strip())
        lines += options(help_of((name, part)), "SS")
    lines += [
        ".SH SEE ALSO",
        "\\fBruvd\\fR(1)" + ("" if name == "serve" else ", \\fBruvd\\-serve\\fR(1)"),
    ]
    return "\n".join(lines) + "\n"


def usages(name: str, found: Help, parts: dict[str, App]) -> list[str]:
    """Returns the usage of a command, or of each of its commands."""
    return [help_of((name, part)).usage for part in parts] or [found.usage]


def pages(release: str) -> dict[str, str]:
    """Returns the texts of all pages by the names of their files."""
    app.help_format = "plaintext"
    return {"ruvd.1": main_page(release)} | {
        f"ruvd-{name}.1": command_page(name, release) for name in commands(app)
    }


def main(folder: Path) -> None:
    """Makes the pages the only files of the folder."""
    texts = pages(version("ruvd"))
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
