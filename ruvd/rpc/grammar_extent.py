"""The extent of a grammar, with which the memory and time of llama.cpp grow.

Two notations are measured: GBNF, and the patterns (regular expressions) of JSON Schemas. llama.cpp
writes repetitions out (`"abc"{1,1999}` took 0.6 GB when `abc` was 20,000 characters), follows every
rule, and for each token tries all ways through elements that may be empty: 50 of them in a row take
up to 5 s a token. So an extent counts what is written out, and such elements. It is an estimate:
what is no grammar at all gets some extent, and the server refuses it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from ruvd.core.values import value

# llama.cpp takes a repetition above this for unlimited, or refuses it.
MAX_REPETITIONS = 2000
# Sizes are not counted above this.
_MAX_SIZE = 1 << 40
_MAX_NESTING = 100
_GBNF = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<rule> [A-Za-z0-9_-]+ \s* ::= ) | (?P<name> [A-Za-z0-9_-]+ )
    | (?P<text> "(?:\\.|[^"\\])*"? ) | (?P<one> \[(?:\\.|[^]\\])*\]? | <[^>]*>? )
    | (?P<many> [*+?] | \{[^}]*\}? ) | (?P<open> \( ) | (?P<close> \) ) | (?P<bar> \| )
    | (?P<other> . )""",
    re.VERBOSE | re.DOTALL,
)
_PATTERN = re.compile(
    r"""(?P<one> \\. | \[\^?\]?(?:\\.|[^]\\])*\]? )
    | (?P<many> [*+?] | \{[0-9,\s]*\} ) | (?P<open> \((?:\?[:=!])? ) | (?P<close> \) )
    | (?P<bar> \| ) | (?P<other> . )""",
    re.VERBOSE | re.DOTALL,
)
_Token: TypeAlias = tuple[str, str]


@value(frozen=True, slots=True)
class Extent:
    """The extent of a part of a grammar.

    `size` counts characters and sets. The others count elements that may be empty, in a row: in
    all of a part that may be empty itself (`through`, else None), at its beginning (`first`), at
    its end (`last`), and the most anywhere (`longest`). `depth` counts nested groups.
    """

    size: int = 0
    through: int | None = 0
    first: int = 0
    last: int = 0
    longest: int = 0
    depth: int = 0

    def __add__(self, other: "Extent") -> "Extent":
        """Returns the extent of one part after the other."""
        mine, others = self.through, other.through
        return Extent(
            min(_MAX_SIZE, self.size + other.size),
            None if mine is None or others is None else mine + others,
            self.first if mine is None else max(self.first, mine + other.first),
            other.last if others is None else max(other.last, self.last + others),
            max(self.longest, other.longest, self.last + other.first),
            max(self.depth, other.depth),
        )

    def repeated(self, least: int, most: int) -> "Extent":
        """Returns the extent of a part that comes `least` to `most` times."""
        size = min(_MAX_SIZE, self.size * max(1, most))
        if self.through is not None:
            run = min(_MAX_SIZE, (self.through + 1) * max(1, most))
            return Extent(size, run, run, run, run, self.depth)
        joined = max(self.longest, self.last + self.first) if most > 1 else self.longest
        if least:
            return replace(self, size=size, longest=joined)
        first, last = self.first + 1, self.last + 1
        return Extent(size, 1, first, last, max(joined, first, last), self.depth)


_ONE = Extent(1, None)


def _any_of(parts: Iterable[Extent]) -> Extent:
    """Returns the extent of alternatives."""
    chosen = list(parts)
    may_be_empty = [part.through for part in chosen if part.through is not None]
    # All alternatives are tried at the same time.
    first = min(_MAX_SIZE, sum(part.first for part in chosen))
    return Extent(
        min(_MAX_SIZE, sum(part.size for part in chosen)),
        max(may_be_empty) if may_be_empty else None,
        first,
        max(part.last for part in chosen),
        max(first, *(part.longest for part in chosen)),
        max(part.depth for part in chosen),
    )


def of_pattern(text: str) -> Extent:
    """Returns the extent of a regular expression."""
    return _extent(_tokens(_PATTERN, text), lambda _: _ONE)


def of_gbnf(text: str) -> Extent:
    """Returns the largest figures of the rules of a GBNF grammar, with the rules in them written
    out."""
    bodies: dict[str, list[_Token]] = {}
    body: list[_Token] = []
    for kind, word in _tokens(_GBNF, text):
        if kind == "rule":
            body = bodies.setdefault(word.removesuffix("::=").strip(), [])
        else:
            body.append((kind, word))
    known: dict[str, Extent] = {}
    depth = 0

    def rule(name: str) -> Extent:
        nonlocal depth
        if name not in known:
            if depth > _MAX_NESTING:
                return Extent(_MAX_SIZE, None)
            known[name] = _ONE  # within itself
            depth += 1
            known[name] = _extent(bodies.get(name, ()), rule)
            depth -= 1
        return known[name]

    extents = [Extent(), *(rule(name) for name in bodies)]
    return Extent(
        max(each.size for each in extents),
        longest=max(each.longest for each in extents),
        depth=max(each.depth for each in extents),
    )


def _tokens(notation: re.Pattern[str], text: str) -> Iterator[_Token]:
    for match in notation.finditer(text):
        if match.lastgroup:
            yield match.lastgroup, match[0]


def _extent(tokens: Iterable[_Token], rule: Callable[[str], Extent]) -> Extent:
    """Returns the extent of alternatives, in groups of any depth."""
    groups: list[list[list[Extent]]] = [[[]]]  # of open groups: alternatives of elements
    for kind, word in tokens:
        sequence = groups[-1][-1]
        if kind == "open":
            if len(groups) > _MAX_NESTING:
                return Extent(depth=len(groups))
            groups.append([[]])
        elif kind == "bar":
            groups[-1].append([])
        elif kind == "close" and len(groups) > 1:
            _close(groups)
        elif kind == "many" and sequence:
            sequence[-1] = sequence[-1].repeated(*_counts(word))
        else:
            sequence.append(_element(kind, word, rule))
    while len(groups) > 1:  # they were not closed
        _close(groups)
    return _group(groups[0])


def _element(kind: str, word: str, rule: Callable[[str], Extent]) -> Extent:
    if kind == "name":
        return rule(word)
    if kind == "text":
        return Extent(len(word), None if len(word) > len('""') else 0)
    return _ONE


def _close(groups: list[list[list[Extent]]]) -> None:
    """Makes the innermost open group an element of the one around it."""
    group = _group(groups.pop())
    groups[-1][-1].append(replace(group, depth=group.depth + 1))


def _group(alternatives: Sequence[Sequence[Extent]]) -> Extent:
    return _any_of(sum(elements, Extent()) for elements in alternatives)


def _counts(word: str) -> tuple[int, int]:
    """Returns the least and the largest number of repetitions, 1 for unlimited ones."""
    if word in "*+?":
        return (1 if word == "+" else 0), 1
    least, comma, most = (part.strip() for part in word.strip("{}").partition(","))
    if not comma:
        most = least
    numbers = [int(part[:6]) if part.isdecimal() else 0 for part in (least, most)]
    return numbers[0], min(max(numbers), MAX_REPETITIONS)
