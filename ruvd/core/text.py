"""The common beginning of two texts, and patterns for names. Pure."""

import re
from bisect import bisect_left


def common_beginning(one: str, other: str) -> int:
    """Returns the number of equal leading characters, by comparing slices, which is fast."""
    most = min(len(one), len(other))
    return bisect_left(range(most), 1, key=lambda at: one[: at + 1] != other[: at + 1])


_WILDCARDS = {"*": "[^/]*", "**": ".*"}


def name_pattern(text: str) -> re.Pattern[str]:
    """Returns a pattern for names: `*` is any text without a slash, `**` any text."""
    parts = re.split(r"(\*{1,2})", text)
    return re.compile("".join(_WILDCARDS.get(part) or re.escape(part) for part in parts))
