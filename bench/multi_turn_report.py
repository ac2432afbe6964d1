"""What `bench/multi_turn.py` says of a case: its tables, its criteria, its JSON.

A figure that stands for several turns is their median, with the least and the most. Figures "from
turn 2" leave the first turn of each conversation out, for which no cache can have anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.answer_comparison import Sameness
from bench.multi_turn_chats import Chat, Turn

TurnRunner = Sequence[Turn]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A figure and what it has to be: at most the limit, or at least. None: not measured."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "not met"

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        value = "-" if self.value is None else f"{self.value:.3f}"
        return f"  {self.verdict}: {self.what}: {value} ({sign} {self.limit:.3g})"


@dataclass
class Case:
    """One case's workload and figures. `later_turns` is whether turn 1 counts for itself."""

    name: str
    workload: dict[str, Any]
    arms: dict[str, list[Turn]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    criteria: list[Criterion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    sameness: Sameness | None = None
    later_turns: bool = True

    def add(self, *chats: Chat) -> None:
        """Take the turns of conversations that were held; those of one name go together."""
        for chat in chats:
            if chat.turns:
                self.arms.setdefault(chat.name, []).extend(chat.turns)
            if chat.failed:
                self.failures[chat.name] = chat.failed

    def counted(self, arm: str) -> list[Turn]:
        """The turns of a way that its figures are of."""
        least = 2 if self.later_turns else 1
        return [turn for turn in self.arms.get(arm, ()) if turn.turn >= least]

    def median(self, arm: str, of: Callable[[Turn], float]) -> float | None:
        """None if there was no such turn."""
        values = [of(turn) for turn in self.counted(arm)]
        return statistics.median(values) if values else None

    def first(self, arm: str) -> float | None:
        """The median time to the first token, in milliseconds."""
        return self.median(arm, lambda turn: turn.first_ms)

    def whole(self, arm: str) -> float | None:
        """What all its turns took together, in milliseconds."""
        turns = self.arms.get(arm)
        return sum(turn.total_ms for turn in turns) if turns else None

    def cached(self, arm: str) -> float | None:
        """The share of its prompt tokens that came from a cache."""
        return cached_share(self.counted(arm))

    def opening(self, arm: str) -> float | None:
        """The median time to the first token of first turns, in milliseconds."""
        values = [turn.first_ms for turn in self.arms.get(arm, ()) if turn.turn == 1]
        return statistics.median(values) if values else None

    def note_unheld(self, arm: str) -> None:
        """Say what the first token would take if the proxy did not hold the stream back."""
        unheld = self.median(arm, lambda turn: turn.unheld_ms or turn.first_ms)
        if unheld is not None:
            self.notes.append(f"{arm} less the time in which the engine generated: {unheld:.0f} ms")

    def require(
        self, what: str, value: float | None, base: float | None, limit: float, **how: bool
    ) -> None:
        """A ratio and its limit."""
        ratio = value / base if value is not None and base else None
        self.criteria.append(Criterion(what, ratio, limit, **how))

    def remarks(self) -> list[str]:
        """The notes, and which answers were cut short, so that lengths do not compare."""
        cut = {
            name: sum(turn.answer_tokens != self.workload["answer_tokens"] for turn in turns)
            for name, turns in self.arms.items()
        }
        told = [
            f"{name}: {count} answers of another length" for name, count in cut.items() if count
        ]
        return [*self.notes, *told]

    def as_json(self) -> dict[str, Any]:
        """Everything, turn by turn, without what was said."""
        return {
            "workload": self.workload,
            "arms": {
                name: {
                    "failed": self.failures.get(name),
                    "first_ms": spread([turn.first_ms for turn in self.counted(name)]),
                    "total_ms": spread([turn.total_ms for turn in self.counted(name)]),
                    "cached_share": cached_share(self.counted(name)),
                    "turns": [_numbers(turn) for turn in turns],
                }
                for name, turns in self.arms.items()
            },
            "criteria": [{**asdict(each), "verdict": each.verdict} for each in self.criteria],
            "notes": self.remarks(),
            "same_answer": self.sameness and asdict(self.sameness),
            **self.extra,
        }

    def show(self) -> None:
        """Both tables, what failed, the criteria."""
        print(f"\n## {self.name}\n")
        print("; ".join(f"{name}: {value}" for name, value in self.workload.items()))
        print()
        self._show_turns()
        print()
        since = ", from turn 2" if self.later_turns else ""
        print(f"| | first token{since} | total | all turns | cached{since} | turns |")
        print("|---|---|---|---|---|---|")
        for name, turns in self.arms.items():
            counted = self.counted(name)
            print(
                f"| {name} | {_range([turn.first_ms for turn in counted])}"
                f" | {_range([turn.total_ms for turn in counted])}"
                f" | {sum(turn.total_ms for turn in turns) / 1000:.1f} s"
                f" | {_percent(cached_share(counted))} | {len(turns)} |"
            )
        print()
        for name, reason in self.failures.items():
            print(f"  {name} stopped at {reason}")
        for note in self.remarks():
            print(f"  {note}")
        if self.sameness:
            self._show_sameness(self.sameness)
        for criterion in self.criteria:
            print(criterion)

    def _show_turns(self) -> None:
        """Turn by turn, first token / total; the median where there are several conversations."""
        print(f"| turn | {' | '.join(f'{name}: first / total ms' for name in self.arms)} |")
        print(f"|---:|{'---|' * len(self.arms)}")
        last = max((turn.turn for turns in self.arms.values() for turn in turns), default=0)
        for number in range(1, last + 1):
            cells = []
            for turns in self.arms.values():
                these = [turn for turn in turns if turn.turn == number]
                if not these:
                    cells.append("")
                    continue
                first = statistics.median(turn.first_ms for turn in these)
                total = statistics.median(turn.total_ms for turn in these)
                prompt = statistics.median(turn.prompt_tokens for turn in these)
                cells.append(f"{first:.0f} / {total:.0f} ({prompt:.0f} tokens)")
            print(f"| {number} | {' | '.join(cells)} |")

    def _show_sameness(self, sameness: Sameness) -> None:
        parted = sameness.differences
        print(
            f"  same answer: {sameness.asked - len(parted)} of {sameness.asked} equal the text"
            f" without a cache; {len(parted) - sameness.unexplained} near-ties,"
            f" {sameness.unexplained} other differences"
        )
        for each in parted:
            gap = "unknown" if each.gap is None else f"{each.gap:.3f}"
            print(
                f"    they part after {each.common} characters; log-probabilities differ by {gap}"
            )


def cached_share(turns: TurnRunner) -> float | None:
    """Cached prompt tokens per prompt tokens, by the engine; None where it does not say."""
    known = [turn for turn in turns if turn.cached_tokens is not None]
    prompts = sum(turn.prompt_tokens for turn in known)
    return sum(turn.cached_tokens or 0 for turn in known) / prompts if prompts else None


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and most."""
    if not values:
        return None
    middle = statistics.median(values)
    return {"median": round(middle, 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def _range(values: Sequence[float]) -> str:
    found = spread(values)
    return "-" if found is None else "{median:.0f} ms ({min:.0f} to {max:.0f})".format_map(found)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _numbers(turn: Turn) -> dict[str, float | int | None]:
    told: dict[str, Any] = asdict(turn)
    del told["text"]
    return {
        name: round(value, 1) if isinstance(value, float) else value for name, value in told.items()
    }
