"""The consoles of the commands, and how text is written on them.

An error ends a command with exit code 1 and one line on stderr that says what to do.
"""

import unicodedata
from typing import NoReturn

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Ends the command with a line on stderr and exit code 1."""
    print_error(message)
    raise SystemExit(1)


def print_error(message: str) -> None:
    """Prints one line on stderr."""
    err.print(f"ruvd: {printable(message)}", markup=False, style="red")


def write(text: str) -> None:
    """Writes a piece of an answer at once, without markup or line breaks of its own."""
    out.out(printable(text), end="")


def one_line(text: str) -> str:
    """Returns the text with spaces instead of line breaks."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """Returns the text without control characters, so that an answer cannot steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def seconds(value: float | None) -> str:
    """Formats a duration for people; a dash if it is unknown."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
