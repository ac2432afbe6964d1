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
    if "*" not in one:
        return star_pattern(other).fullmatch(one) is not None
    if "*" not in other:
        return star_pattern(one).fullmatch(other) is not None
    # Between the first and the last star of both, a text may have the parts of one after the other.
    start, other_start = one.partition("*")[0], other.partition("*")[0]
    end, other_end = one.rpartition("*")[2], other.rpartition("*")[2]
    begin_alike = start.startswith(other_start) or other_start.startswith(start)
    return begin_alike and (end.endswith(other_end) or other_end.endswith(end))
