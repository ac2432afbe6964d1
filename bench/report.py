"""Statistics and criteria for the reports of the benchmarks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Criterion:
    """A figure, or None if it was not measured, and the largest or smallest value allowed."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def aim(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:.3g}"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "not met"

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3f}"
        return f"  {self.verdict}: {self.what}: {value} ({self.aim})"


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Returns the median, the smallest and the largest value, rounded."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """Returns a percentile by the nearest-rank method."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
