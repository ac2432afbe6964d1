"""The common beginning of two texts, and patterns for names. Pure."""

import re
from bisect import bisect_left
from functools import lru_cache


def common_beginning(one: str, other: str) -> int:
    """Returns the number of equal leading characters, by comparing slices, which is fast."""
    most = min(len(one), len(other))
    return bisect_left(range(most), 1, key=lambda at: one[: at + 1] != other[: at + 1])


_WILDCARDS = {"*": "[^/]*", "**": ".*"}


def name_pattern(text: str) -> re.Pattern[str]:
    """Returns a pattern for names: `*` is any text without a slash, `**` any text."""
    parts = re.split(r"(\*{1,2})", text)
    return re.compile("".join(_WILDCARDS.get(part) or re.escape(part) for part in parts))


@lru_cache(10_000)
def star_pattern(text: str) -> re.Pattern[str]:
    """Returns a pattern in which `*` is any text. It matches in linear time for each star."""
    first, *others = map(re.escape, text.split("*"))
    if not others:
        return re.compile(first)
    # The first place of a part is as good as any later one, so there is no way back from it.
    between = "".join(f"(?>.*?{part})" for part in others[:-1] if part)
    return re.compile(f"{first}{between}.*{others[-1]}", re.DOTALL)


def star_patterns_overlap(one: str, other: str) -> bool:
    """Returns whether some text matches both patterns, in which `*` is any text."""
    # `reached` are the lengths of the beginnings of `other` that go with those of `one` so far.
    reached = _after_stars({0}, other)
    for character in one:
        if not reached:
            return False
        if character == "*":
            reached = set(range(min(reached), len(other) + 1))
            continue
        reached = {
            at + (other[at] != "*")
            for at in reached
            if at < len(other) and other[at] in ("*", character)
        }
        reached = _after_stars(reached, other)
    return len(other) in reached


def _after_stars(reached: set[int], pattern: str) -> set[int]:
    """Adds the places behind stars, which may stand for nothing."""
    found = set(reached)
    for at in reached:
        stars = len(pattern[at:]) - len(pattern[at:].lstrip("*"))
        found.update(range(at, at + stars + 1))
    return found
