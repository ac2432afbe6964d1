"""The fenced blocks of the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "bench/*.md", "clients/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(ruvd [^`\n]+)`")
_OPERATORS = re.compile(r"[|&;()<>]+")
_HERE_DOCUMENT = re.compile(r"<<'?(\w+)'?([^\n]*)\n.*?^\1$", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Returns the place of the block, for messages."""
        return f"{self.page}:{self.line} ({self.language or 'no language'})"


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page."""
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match[2],
            re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE),
        )
        for match in _FENCE.finditer(text)
    ]


def python_pages() -> list[str]:
    """Returns the pages whose Python examples are run by `test_readme_examples.py`."""
    pages = (str(page) for page in PAGES)
    return [
        page
        for page in pages
        if page.startswith("docs/") or page in {"README.md", "clients/python/README.md"}
        if any(block.language == "python" for block in blocks(page))
    ]


def all_blocks() -> list[Block]:
    """Returns the blocks of all pages."""
    return [block for page in PAGES for block in blocks(str(page))]


def prose(page: str) -> str:
    """Returns a page without its blocks."""
    return _FENCE.sub("", (ROOT / page).read_text())


def inline_commands(page: str) -> list[list[str]]:
    """Returns the `ruvd` commands in a page's sentences and tables, as words without `ruvd`."""
    found = _INLINE.findall(prose(page))
    return [shlex.split(re.sub(r"[][]", "", each))[1:] for each in found]  # [--optional]


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each command of a shell script.

    Comments, redirections and here-documents are left out.
    """
    without_documents = _HERE_DOCUMENT.sub(r"\2", text)
    for line in without_documents.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for word in lexer:
            if _OPERATORS.fullmatch(word):
                redirected = word[0] in "<>"
                if words and not redirected:
                    yield words
                    words = []
            elif redirected:
                redirected = False
            else:
                words.append(word)
        if words:
            yield words


def ruvd_words(words: list[str]) -> list[str] | None:
    """Returns what follows `ruvd` in a command, None if it calls another program.

    `ruvd` may follow variables and `sudo`, or the `--` of a program such as kubectl.
    """
    for at, word in enumerate(words):
        if PurePath(word).name == "ruvd":
            return words[at + 1 :]
        if word != "sudo" and not _ASSIGNMENT.match(word):
            break
    if "--" in words:
        rest = words[words.index("--") + 1 :]
        return ruvd_words(rest) if rest else None
    return None
