"""Patterns of JSON Schema, which are regular expressions of JavaScript.

They are translated to those of the library regex, which has Unicode properties such as `\\p{L}`,
looks around, and stops a search that takes too long. It lets other threads run during a search.
"""

import re
from functools import lru_cache

import regex

_SEARCH_SECONDS = 2.0
_SPACE = r"\s\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": _SPACE}
_LETTER = "[A-Za-z0-9_]"
_BOUNDARIES = {
    "b": f"(?:(?<={_LETTER})(?!{_LETTER})|(?<!{_LETTER})(?={_LETTER}))",
    "B": f"(?:(?<={_LETTER})(?={_LETTER})|(?<!{_LETTER})(?!{_LETTER}))",
}
_REPETITION = re.compile(r"\{\d+(?:,\d*)?\}")
_GROUP = re.compile(r"\((?!\?)|\(\?(?:[:=!]|<[=!]|<[A-Za-z_]\w*>)")
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
    r"|u\{[0-9a-fA-F]{1,6}\}|x[0-9a-fA-F]{2}|c[A-Za-z]|[pP]\{[\w=]+\}|k<\w+>|[1-9][0-9]?|.)",
    re.DOTALL,
)


class PatternRefused(Exception):
    """The text is no pattern; the message says why."""


class TooSlow(Exception):
    """A search took too long."""


class Pattern:
    """A compiled pattern. Raises PatternRefused."""

    def __init__(self, text: str) -> None:
        try:
            self._regex = regex.compile(_translated(text))
        except (regex.error, ValueError, OverflowError, RecursionError) as error:
            raise PatternRefused(f"the pattern {text[:100]!r} cannot be read: {error}") from None

    def occurs_in(self, text: str) -> bool:
        """Tells whether the pattern occurs anywhere in a text. Blocks. Raises TooSlow."""
        try:
            found = self._regex.search(text, timeout=_SEARCH_SECONDS, concurrent=True)
        except TimeoutError as error:
            raise TooSlow from error
        return found is not None


@lru_cache(maxsize=256)
def compiled(text: str) -> Pattern:
    """Returns the compiled pattern. Raises PatternRefused."""
    return Pattern(text)


def _translated(text: str) -> str:
    out, at = [], 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            piece, at = _escape(text, at, in_set=False)
        elif character == "[":
            piece, at = _set(text, at)
        elif character == "(":
            if (group := _GROUP.match(text, at)) is None:
                raise PatternRefused(f"the pattern {text[:100]!r} has a group that is unknown")
            piece, at = group[0], group.end()
        elif character == "{" and not _REPETITION.match(text, at):
            piece, at = r"\{", at + 1
        else:
            piece, at = {"$": r"\Z", ".": r"[^\n\r\u2028\u2029]"}.get(character, character), at + 1
        out.append(piece)
    return "".join(out)


def _escape(text: str, at: int, *, in_set: bool) -> tuple[str, int]:
    """Translates the escape at a position, and returns the position after it."""
    found = _ESCAPE.match(text, at)
    if found is None:
        raise PatternRefused("the pattern ends with a backslash")
    escape, kind, rest = found[0], found[0][1], found[0][2:]
    if kind in "dwsDWS":
        return _class(kind, in_set=in_set), found.end()
    if kind in "bB" and not (in_set and kind == "B"):
        return (r"\x08" if in_set else _BOUNDARIES[kind]), found.end()
    if rest:
        return _long(kind, rest) or escape, found.end()
    if kind in "nrtfv" or kind in "123456789":
        return escape, found.end()
    return _literal("\0" if kind == "0" else kind), found.end()


def _class(kind: str, *, in_set: bool) -> str:
    if kind.islower():
        return _CLASSES[kind] if in_set else f"[{_CLASSES[kind]}]"
    # Nested sets are not used. In a set, the digits of other scripts are taken for digits.
    return f"\\{kind}" if in_set else f"[^{_CLASSES[kind.lower()]}]"


def _long(kind: str, rest: str) -> str:
    """Translates an escape of several characters; empty if it stays as it is."""
    if kind in "ux":
        digits = rest.strip("{}")
        if len(digits) <= len("10ffff"):
            return _literal(chr(int(digits, 16)))
        pair = bytes.fromhex(digits.replace("\\u", ""))
        return _literal(pair.decode("utf-16-be"))
    if kind == "c":
        return _literal(chr(ord(rest) % 32))
    return f"(?P={rest[1:-1]})" if kind == "k" else ""


def _set(text: str, at: int) -> tuple[str, int]:
    """Translates the set of characters at a position, and returns the position after it."""
    at += 1
    negated = text[at : at + 1] == "^"
    at += negated
    if text[at : at + 1] == "]":
        return (r"[\s\S]" if negated else "(?!)"), at + 1
    out = ["[^" if negated else "["]
    while at < len(text) and text[at] != "]":
        if text[at] == "\\":
            piece, at = _escape(text, at, in_set=True)
        else:
            # The library reserves these characters for sets of sets.
            piece, at = (f"\\{text[at]}" if text[at] in "[&|~^" else text[at]), at + 1
        out.append(piece)
    if at == len(text):
        raise PatternRefused("the pattern has a set without an end")
    return "".join([*out, "]"]), at + 1


def _literal(character: str) -> str:
    return f"\\{character}" if character.isascii() and not character.isalnum() else character
