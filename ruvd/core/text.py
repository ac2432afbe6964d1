"""How much two texts have in common at their beginning. Pure."""

from __future__ import annotations

from bisect import bisect_left


def common_beginning(one: str, other: str) -> int:
    """How many characters are the same; by whole slices, as a loop over them is slow."""
    most = min(len(one), len(other))
    return bisect_left(range(most), 1, key=lambda at: one[: at + 1] != other[: at + 1])
