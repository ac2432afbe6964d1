"""The report of a case of `bench/multi_turn.py`: tables, criteria and JSON.

A figure of several turns is their median, with the smallest and the largest. Figures "from turn 2"
leave out the first turn of each conversation, of which no cache can have anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.answer_comparison import Comparison
from bench.multi_turn_chats import Chat, Turn
from bench.report import Criterion, spread


@dataclass
class Case:
    """The workload and figures of one case, by approach.

    With `later_turns` the figures leave out the first turn of each conversation.
    """

    name: str
    workload: dict[str, Any]
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    criteria: list[Criterion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None
    later_turns: bool = True

    def add(self, *chats: Chat) -> None:
        """Adds the turns of finished conversations; those with the same name are merged."""
        for chat in chats:
            if chat.turns:
                self.turns.setdefault(chat.name, []).extend(chat.turns)
            if chat.failed:
                self.failures[chat.name] = chat.failed

    def counted(self, approach: str) -> list[Turn]:
        """Returns the turns of an approach that its figures are computed from."""
        first = 2 if self.later_turns else 1
        return [turn for turn in self.turns.get(approach, ()) if turn.turn >= first]

    def median(self, approach: str, figure: Callable[[Turn], float]) -> float | None:
        """Returns the median of a figure, or None if no turn was measured."""
        values = [figure(turn) for turn in self.counted(approach)]
        return statistics.median(values) if values else None

    def first_ms(self, approach: str) -> float | None:
        """Returns the median time to the first token."""
        return self.median(approach, lambda turn: turn.first_ms)

    def total_ms(self, approach: str) -> float | None:
        """Returns the total time of all turns."""
        turns = self.turns.get(approach)
        return sum(turn.total_ms for turn in turns) if turns else None

    def cached(self, approach: str) -> float | None:
        """Returns the share of prompt tokens that came from a cache."""
        return cached_share(self.counted(approach))

    def first_turn_ms(self, approach: str) -> float | None:
        """Returns the median time to the first token of first turns."""
        values = [turn.first_ms for turn in self.turns.get(approach, ()) if turn.turn == 1]
        return statistics.median(values) if values else None

    def note_unbuffered(self, approach: str) -> None:
        """Notes the time to the first token if the proxy did not buffer the stream."""
        median = self.median(approach, lambda turn: turn.unbuffered_first_ms or turn.first_ms)
        if median is not None:
            text = f"{median:.0f} ms to the first token without the proxy's buffering"
            self.notes.append(f"{approach}: {text}")

    def require(
        self, what: str, value: float | None, base: float | None, limit: float, **how: bool
    ) -> None:
        """Adds a criterion on the ratio of two figures."""
        ratio = value / base if value is not None and base else None
        self.criteria.append(Criterion(what, ratio, limit, **how))

    def remarks(self) -> list[str]:
        """Returns the notes, and which approaches gave answers of another length."""
        wrong_lengths = {
            name: sum(turn.answer_tokens != self.workload["answer_tokens"] for turn in turns)
            for name, turns in self.turns.items()
        }
        return self.notes + [
            f"{name}: {count} answers of another length"
            for name, count in wrong_lengths.items()
            if count
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns all figures turn by turn, without the texts."""
        return {
            "workload": self.workload,
            "arms": {
                name: {
                    "failed": self.failures.get(name),
                    "first_ms": _spread_or_none([turn.first_ms for turn in self.counted(name)]),
                    "total_ms": _spread_or_none([turn.total_ms for turn in self.counted(name)]),
                    "cached_share": cached_share(self.counted(name)),
                    "turns": [_numbers(turn) for turn in turns],
                }
                for name, turns in self.turns.items()
            },
            "criteria": [
                {**asdict(criterion), "verdict": criterion.verdict} for criterion in self.criteria
            ],
            "notes": self.remarks(),
            "same_answer": self.comparison and asdict(self.comparison),
            **self.extra,
        }

    def show(self) -> None:
        """Prints both tables, the failures and the criteria."""
        print(f"\n## {self.name}\n")
        print("; ".join(f"{name}: {value}" for name, value in self.workload.items()))
        print()
        self._show_turns()
        print()
        from_turn = ", from turn 2" if self.later_turns else ""
        print(
            f"| approach | first token{from_turn} | one turn{from_turn} | all turns"
            f" | cached{from_turn} | turns |"
        )
        print("|---|---|---|---|---|---|")
        for name, turns in self.turns.items():
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
        if self.comparison:
            self._show_comparison(self.comparison)
        for criterion in self.criteria:
            print(criterion)

    def _show_turns(self) -> None:
        """Prints the time to the first token and the total, the medians of all conversations."""
        print(f"| turn | {' | '.join(f'{name}: first / total ms' for name in self.turns)} |")
        print(f"|---:|{'---|' * len(self.turns)}")
        last = max((turn.turn for turns in self.turns.values() for turn in turns), default=0)
        for number in range(1, last + 1):
            cells = []
            for turns in self.turns.values():
                these = [turn for turn in turns if turn.turn == number]
                if not these:
                    cells.append("")
                    continue
                first = statistics.median(turn.first_ms for turn in these)
                total = statistics.median(turn.total_ms for turn in these)
                prompt = statistics.median(turn.prompt_tokens for turn in these)
                cells.append(f"{first:.0f} / {total:.0f} ({prompt:.0f} tokens)")
            print(f"| {number} | {' | '.join(cells)} |")

    def _show_comparison(self, comparison: Comparison) -> None:
        differences = comparison.differences
        equal = comparison.asked - len(differences)
        print(
            f"  {equal} of {comparison.asked} answers equal the uncached answer;"
            f" {len(differences) - comparison.unexplained} near-ties,"
            f" {comparison.unexplained} other differences"
        )
        for difference in differences:
            print(f"    {difference}")


def cached_share(turns: Sequence[Turn]) -> float | None:
    """Returns the engine's share of cached prompt tokens, or None if it reports none."""
    known = [turn for turn in turns if turn.cached_tokens is not None]
    prompts = sum(turn.prompt_tokens for turn in known)
    return sum(turn.cached_tokens or 0 for turn in known) / prompts if prompts else None


def _spread_or_none(values: Sequence[float]) -> dict[str, float] | None:
    return spread(values, 1) if values else None


def _range(values: Sequence[float]) -> str:
    figures = _spread_or_none(values)
    return "{median:.0f} ms ({min:.0f} to {max:.0f})".format_map(figures) if figures else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _numbers(turn: Turn) -> dict[str, float | int | None]:
    """Returns the rounded figures of a turn, without its text."""
    figures: dict[str, Any] = asdict(turn)
    del figures["text"]
    return {
        name: round(value, 1) if isinstance(value, float) else value
        for name, value in figures.items()
    }
